// Command orch-dev is for those who work on orch, or try it out: it runs real
// agents and the service on this machine.
package main

import (
	"os"

	"github.com/hashicorp/cli"

	"github.com/septemberai/orch/internal/cmdline"
)

func main() {
	os.Exit(cmdline.Run("orch-dev", map[string]cli.CommandFactory{
		"dev":   func() (cli.Command, error) { return &devCommand{}, nil },
		"demo":  func() (cli.Command, error) { return &demoCommand{}, nil },
		"tools": func() (cli.Command, error) { return &toolsCommand{}, nil },
	}, os.Args[1:]))
}
