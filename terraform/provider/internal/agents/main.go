// Command agents is a Terraform provider for tests. It has the resources of HashiCorp's
// providers for Nomad and Consul that the modules in deploy/terraform use, with the same
// arguments, over the agents' own HTTP APIs. The Go module proxy does not have HashiCorp's
// two, so where they cannot be downloaded, the tests of the modules use this one. It
// serves the provider after which its executable is named.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	registry "github.com/hashicorp/terraform-registry-address"
)

func main() {
	name, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(os.Args[0]), "terraform-provider-"), "_")
	kinds, known := providers[name]
	if !known {
		log.Fatal("the executable is not named after a provider")
	}
	p := &agents{name: name, kinds: kinds}
	err := providerserver.Serve(context.Background(), func() provider.Provider { return p }, providerserver.ServeOpts{
		Address: registry.Provider{Hostname: registry.DefaultProviderRegistryHost, Namespace: "hashicorp", Type: name}.String(),
	})
	if err != nil {
		log.Fatal(err)
	}
}

// agents is the provider of one kind of agent. Its settings are the environment variables of
// the agent's own command line.
type agents struct {
	name  string
	kinds []kind
	api   *api
}

func (p *agents) Metadata(_ context.Context, _ provider.MetadataRequest, resp *provider.MetadataResponse) {
	resp.TypeName = p.name
}

func (p *agents) Schema(_ context.Context, _ provider.SchemaRequest, resp *provider.SchemaResponse) {
	resp.Schema = schema.Schema{}
}

func (p *agents) Configure(_ context.Context, _ provider.ConfigureRequest, resp *provider.ConfigureResponse) {
	var err error
	if p.api, err = newAPI(p.name); err != nil {
		resp.Diagnostics.AddError(fmt.Sprintf("The settings of %s", p.name), err.Error())
	}
	resp.ResourceData = p.api
}

func (p *agents) Resources(context.Context) (all []func() resource.Resource) {
	for _, k := range p.kinds {
		all = append(all, func() resource.Resource { return &object{kind: k} })
	}
	if p.name == "nomad" {
		all = append(all, func() resource.Resource { return &job{} })
	}
	return all
}

func (p *agents) DataSources(context.Context) []func() datasource.DataSource { return nil }
