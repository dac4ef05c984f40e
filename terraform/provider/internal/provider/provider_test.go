package provider

import (
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
)

// TestSchema: the framework accepts all schemas, everything has a description, and each key
// is sensitive, so that Terraform does not print it.
func TestSchema(t *testing.T) {
	server, err := providerserver.NewProtocol6WithError(New("test")())()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.GetProviderSchema(t.Context(), &tfprotov6.GetProviderSchemaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range resp.Diagnostics {
		t.Errorf("%s: %s", d.Summary, d.Detail)
	}
	all := map[string]*tfprotov6.Schema{"provider": resp.Provider}
	for kind, schemas := range map[string]map[string]*tfprotov6.Schema{"resource ": resp.ResourceSchemas, "data ": resp.DataSourceSchemas, "ephemeral ": resp.EphemeralResourceSchemas} {
		for name, s := range schemas {
			all[kind+name] = s
		}
	}
	secret := map[string]bool{"admin_key": true, "platform_key": true, "api_key": true}
	secrets := 0
	for name, s := range all {
		if s.Block.Description == "" {
			t.Errorf("%s has no description", name)
		}
		for _, a := range s.Block.Attributes {
			if a.Description == "" && a.Name != "timeouts" {
				t.Errorf("%s.%s has no description", name, a.Name)
			}
			if a.Sensitive != secret[a.Name] {
				t.Errorf("%s.%s is sensitive: %t", name, a.Name, a.Sensitive)
			}
			if a.Sensitive {
				secrets++
			}
			// An engine's key can be read at any time, so no state needs it.
			if a.Name == "api_key" && !strings.HasPrefix(name, "ephemeral ") {
				t.Errorf("%s has the engine's key", name)
			}
		}
	}
	if len(all) != 9 || secrets != 5 {
		t.Errorf("%d schemas with %d keys", len(all), secrets)
	}
}
