// Command orch is the service and its command line.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/cli"
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
	c.Commands = map[string]cli.CommandFactory{
		"server":  func() (cli.Command, error) { return &serverCommand{}, nil },
		"dev":     func() (cli.Command, error) { return &devCommand{}, nil },
		"demo":    func() (cli.Command, error) { return &demoCommand{}, nil },
		"tools":   func() (cli.Command, error) { return &toolsCommand{}, nil },
		"version": func() (cli.Command, error) { return &versionCommand{}, nil },
	}
	code, err := c.Run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if code == cli.RunResultHelp {
		return 0
	}
	if code == 127 { // the library's code for an unknown command
		return 2
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
