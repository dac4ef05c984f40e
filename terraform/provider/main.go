// Command terraform-provider-orch is the Terraform provider of orch: products and engines as
// resources. Terraform starts it; docs/terraform.md says how to install it.
package main

import (
	"context"
	"flag"
	"log"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"

	"github.com/septemberai/orch/terraform/provider/internal/provider"
)

// version is set by the linker.
var version = "dev"

func main() {
	debug := flag.Bool("debug", false, "wait for a debugger: print TF_REATTACH_PROVIDERS, which makes Terraform use this process")
	flag.Parse()
	err := providerserver.Serve(context.Background(), provider.New(version), providerserver.ServeOpts{
		Address: provider.Address, Debug: *debug,
	})
	if err != nil {
		log.Fatal(err)
	}
}
