// Command orch is the service and its command line.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/hashicorp/cli"

	"github.com/septemberai/orch/cmd/orch/internal/remote"
)

// version is set by the linker (-X main.version=...).
var version = "dev"

func main() { os.Exit(run(os.Args[1:])) }

// run returns the exit code: 0 done, 1 failed, 2 called wrongly.
func run(args []string) int {
	c := cli.NewCLI("orch", version)
	c.Args = args
	c.HelpFunc = help
	c.HelpWriter, c.ErrorWriter = os.Stdout, os.Stderr // help that was asked for can be piped
	c.Commands = remote.Commands(remote.OS(), map[string]cli.CommandFactory{
		"server":  func() (cli.Command, error) { return &serverCommand{}, nil },
		"dev":     func() (cli.Command, error) { return &devCommand{}, nil },
		"demo":    func() (cli.Command, error) { return &demoCommand{}, nil },
		"tools":   func() (cli.Command, error) { return &toolsCommand{}, nil },
		"version": func() (cli.Command, error) { return &versionCommand{}, nil },

		"reconcile":           func() (cli.Command, error) { return &reconcileCommand{}, nil },
		"engine bury":         func() (cli.Command, error) { return &buryCommand{}, nil },
		"engine adopt":        func() (cli.Command, error) { return &adoptCommand{}, nil },
		"engine discard":      func() (cli.Command, error) { return &discardCommand{}, nil },
		"engine quarantine":   func() (cli.Command, error) { return &quarantineCommand{}, nil },
		"engine rekey":        func() (cli.Command, error) { return &rekeyCommand{}, nil },
		"node adopt":          func() (cli.Command, error) { return &nodeAdoptCommand{}, nil },
		"registry recover":    func() (cli.Command, error) { return &recoverCommand{}, nil },
		"registry status":     func() (cli.Command, error) { return &registryCommand{}, nil },
		"provider-keys apply": func() (cli.Command, error) { return &providerKeysCommand{}, nil },
	})
	code, err := c.Run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if code == cli.RunResultHelp {
		return 0
	}
	if code == 127 || code == 1 && len(args) > 0 && strings.HasPrefix(args[0], "-") {
		return 2 // the library's codes for an unknown command, and for flags before one
	}
	return code
}

func help(commands map[string]cli.CommandFactory) string {
	return cli.BasicHelpFunc("orch")(commands)
}

type versionCommand struct{}

func (*versionCommand) Help() string     { return "Usage: orch version\n\n  Print the version." }
func (*versionCommand) Synopsis() string { return "Print the version" }
func (*versionCommand) Run([]string) int {
	fmt.Println("orch " + version)
	return 0
}
