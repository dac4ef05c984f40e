package provider

import (
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/septemberai/orch/client"
)

// The variables are those of the command line (docs/cli.md).
const (
	envURL         = "ORCH_URL"
	envAdminKey    = "ORCH_ADMIN_KEY"
	envPlatformKey = "ORCH_PLATFORM_KEY"
	envCACert      = "ORCH_CACERT"
	envClientCert  = "ORCH_CLIENT_CERT"
	envClientKey   = "ORCH_CLIENT_KEY"
)

// settings are the arguments of the provider.
type settings struct {
	URL         types.String `tfsdk:"url"`
	AdminKey    types.String `tfsdk:"admin_key"`
	PlatformKey types.String `tfsdk:"platform_key"`
	CACert      types.String `tfsdk:"ca_cert"`
	ClientCert  types.String `tfsdk:"client_cert"`
	ClientKey   types.String `tfsdk:"client_key"`
}

// fromEnvironment fills in the arguments that the configuration does not set. A key with
// surrounding space is usually the content of a file with its final newline.
func (s *settings) fromEnvironment() {
	for value, name := range map[*types.String]string{
		&s.URL: envURL, &s.AdminKey: envAdminKey, &s.PlatformKey: envPlatformKey,
		&s.CACert: envCACert, &s.ClientCert: envClientCert, &s.ClientKey: envClientKey,
	} {
		if !value.IsUnknown() && !known(*value) {
			*value = types.StringValue(os.Getenv(name))
		}
		if known(*value) {
			*value = types.StringValue(strings.TrimSpace(value.ValueString()))
		}
	}
}

// retries are made for about a minute in total: a replica restarts, or the service is at its
// limit of requests. Whatever lasts longer is an error that the user should see.
var retries = client.RetryPolicy{Attempts: 8, MinWait: 500 * time.Millisecond, MaxWait: 30 * time.Second}

// connect returns the connection that the settings describe, and reports mistakes in them.
// A setting that is known only after apply is not a mistake.
func (s *settings) connect(version string, diags *diag.Diagnostics) *connection {
	c := &connection{settings: *s, fresh: &freshKeys{}}
	if s.URL.IsUnknown() || s.CACert.IsUnknown() || s.ClientCert.IsUnknown() || s.ClientKey.IsUnknown() {
		return c
	}
	switch u, err := url.Parse(s.URL.ValueString()); {
	case !known(s.URL):
		diags.AddAttributeError(path.Root("url"), "The address of orch is missing",
			"Set the provider's argument url, or the environment variable "+envURL+".")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		diags.AddAttributeError(path.Root("url"), "The address of orch is not valid",
			fmt.Sprintf("%q must be an http or https address, for example https://orch.example.com.", s.URL.ValueString()))
	}
	h, err := client.TLS{CACert: s.CACert.ValueString(), ClientCert: s.ClientCert.ValueString(), ClientKey: s.ClientKey.ValueString()}.HTTPClient()
	if err != nil {
		diags.AddError("The certificates of the provider cannot be used", err.Error()+".\n\nCheck ca_cert, client_cert and client_key.")
		return c
	}
	h.Transport = &logged{base: h.Transport, agent: "terraform-provider-orch/" + version}
	c.client = &client.Client{BaseURL: s.URL.ValueString(), HTTP: h, Retry: retries}
	return c
}
