// Command orch is the service and its command line.
package main

import (
	"os"

	"github.com/hashicorp/cli"

	"github.com/septemberai/orch/cmd/orch/internal/remote"
	"github.com/septemberai/orch/internal/cmdline"
)

func main() { os.Exit(run(os.Args[1:])) }

// run returns the exit code: 0 done, 1 failed, 2 called wrongly.
func run(args []string) int {
	return cmdline.Run("orch", remote.Commands(remote.OS(), map[string]cli.CommandFactory{
		"server": func() (cli.Command, error) { return &serverCommand{}, nil },

		"reconcile":           func() (cli.Command, error) { return &reconcileCommand{}, nil },
		"engine adopt":        func() (cli.Command, error) { return &adoptCommand{}, nil },
		"engine discard":      func() (cli.Command, error) { return &discardCommand{}, nil },
		"engine quarantine":   func() (cli.Command, error) { return &quarantineCommand{}, nil },
		"engine rekey":        func() (cli.Command, error) { return &rekeyCommand{}, nil },
		"node adopt":          func() (cli.Command, error) { return &nodeAdoptCommand{}, nil },
		"registry recover":    func() (cli.Command, error) { return &recoverCommand{}, nil },
		"registry status":     func() (cli.Command, error) { return &registryCommand{}, nil },
		"volume list":         func() (cli.Command, error) { return &volumeListCommand{}, nil },
		"volume forget":       func() (cli.Command, error) { return &volumeForgetCommand{}, nil },
		"provider-keys apply": func() (cli.Command, error) { return &providerKeysCommand{}, nil },
	}), args)
}
