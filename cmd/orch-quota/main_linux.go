// Command orch-quota is a Nomad plugin for dynamic host volumes that limits the size of
// volumes. It must be in the host_volume_plugin_dir of each node; see docs/install.md. For
// operators, "orch-quota usage DIR" lists how much space the volumes in Nomad's
// host_volumes_dir use.
package main

import (
	"fmt"
	"os"

	"github.com/septemberai/orch/internal/volumeplugin"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "usage" {
		if err := volumeplugin.Usage(os.Args[2], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "orch-quota:", err)
			os.Exit(1)
		}
		return
	}
	operation := ""
	if len(os.Args) == 2 {
		operation = os.Args[1]
	}
	os.Exit(volumeplugin.Run(operation, os.Getenv, os.Stdout))
}
