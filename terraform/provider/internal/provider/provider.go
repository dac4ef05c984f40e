// Package provider contains the Terraform provider of orch: its arguments (settings.go), how
// it calls the service (connection.go), and a file for each resource, data source and
// ephemeral resource. What the service refuses is refused by the plan already, with the
// service's own rules from the package engine.
package provider

import (
	"context"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/ephemeral"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/types"
	tfaddr "github.com/hashicorp/terraform-registry-address"
)

// Address is the provider's address in the registry that Terraform uses by default.
var Address = tfaddr.NewProvider(tfaddr.DefaultProviderRegistryHost, "septemberai", "orch").String()

// New returns a constructor of the provider.
func New(version string) func() provider.Provider {
	return func() provider.Provider { return &orch{version: version} }
}

type orch struct{ version string }

var _ provider.ProviderWithEphemeralResources = (*orch)(nil)

// Metadata names the provider.
func (o *orch) Metadata(_ context.Context, _ provider.MetadataRequest, resp *provider.MetadataResponse) {
	resp.TypeName, resp.Version = "orch", o.version
}

// Schema describes the provider's arguments.
func (o *orch) Schema(_ context.Context, _ provider.SchemaRequest, resp *provider.SchemaResponse) {
	text := func(env, what string) schema.StringAttribute {
		return schema.StringAttribute{Optional: true, MarkdownDescription: what + " Default: the environment variable `" + env + "`."}
	}
	secret := func(env, what string) schema.StringAttribute {
		a := text(env, what)
		a.Sensitive = true
		return a
	}
	resp.Schema = schema.Schema{
		MarkdownDescription: "Manages products and engines of [orch](https://github.com/septemberai/orch), which gives every user of a product a private, stateful engine.\n\n" +
			"The provider calls the service with two keys. The admin key manages products. The platform key of a product manages that product's engines. " +
			"A configuration that manages the engines of several products has one provider configuration (`alias`) for each of them.\n\n" +
			"The provider needs Terraform 1.11 or newer.",
		Attributes: map[string]schema.Attribute{
			"url":          text(envURL, "The address of the service, for example `https://orch.example.com`."),
			"admin_key":    secret(envAdminKey, "The admin key. `orch_product`, its data source, and calls about all products need it."),
			"platform_key": secret(envPlatformKey, "The platform key of the product whose engines are managed. `orch_engine` and `orch_engine_key` need it."),
			"ca_cert":      text(envCACert, "A file in PEM format with the authorities that signed the certificate of the service. Without it the authorities of the system are trusted."),
			"client_cert":  text(envClientCert, "A file in PEM format with a client certificate, if the service requires one. Needs `client_key`."),
			"client_key":   text(envClientKey, "A file in PEM format with the private key of `client_cert`."),
		},
	}
}

// Configure connects the provider's resources to the service. It makes no call.
func (o *orch) Configure(ctx context.Context, req provider.ConfigureRequest, resp *provider.ConfigureResponse) {
	var s settings
	resp.Diagnostics.Append(req.Config.Get(ctx, &s)...)
	if resp.Diagnostics.HasError() {
		return
	}
	s.fromEnvironment()
	c := s.connect(o.version, &resp.Diagnostics)
	resp.ResourceData, resp.DataSourceData, resp.EphemeralResourceData = c, c, c
}

// Resources lists the resources.
func (o *orch) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{
		func() resource.Resource { return &product{} },
		func() resource.Resource { return &engineResource{} },
	}
}

// DataSources lists the data sources.
func (o *orch) DataSources(context.Context) []func() datasource.DataSource {
	return []func() datasource.DataSource{
		func() datasource.DataSource { return &productData{} },
		func() datasource.DataSource { return &engineData{} },
		func() datasource.DataSource { return &enginesData{} },
		func() datasource.DataSource { return &statusData{} },
	}
}

// EphemeralResources lists the ephemeral resources.
func (o *orch) EphemeralResources(context.Context) []func() ephemeral.EphemeralResource {
	return []func() ephemeral.EphemeralResource{
		func() ephemeral.EphemeralResource { return &platformKey{} },
		func() ephemeral.EphemeralResource { return &engineKey{} },
	}
}

// known reports whether a value is set and known.
func known(s types.String) bool { return !s.IsNull() && !s.IsUnknown() && s.ValueString() != "" }

// textOf returns null for an empty text.
func textOf(s string) types.String {
	if s == "" {
		return types.StringNull()
	}
	return types.StringValue(s)
}

// timeOf returns null for no time.
func timeOf(t time.Time) types.String {
	if t.IsZero() {
		return types.StringNull()
	}
	return types.StringValue(t.UTC().Format(time.RFC3339Nano))
}
