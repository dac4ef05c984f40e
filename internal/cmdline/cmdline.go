// Package cmdline is what this repository's executables share: how they run a
// command line, what they say of a wrong configuration, and their version.
package cmdline

import (
	"fmt"
	"os"
	"strings"

	"github.com/hashicorp/cli"
)

// Run runs the command that args name and returns the exit code: 0 done, 1
// failed, 2 called wrongly. name is the executable's; it has the command
// "version" besides those given.
func Run(name string, commands map[string]cli.CommandFactory, args []string) int {
	c := cli.NewCLI(name, Build().Version)
	c.Args = args
	c.HelpFunc = cli.BasicHelpFunc(name)
	c.HelpWriter, c.ErrorWriter = os.Stdout, os.Stderr // help that was asked for can be piped
	c.Commands = map[string]cli.CommandFactory{
		"version": func() (cli.Command, error) { return versionCommand(name), nil },
	}
	for n, factory := range commands {
		c.Commands[n] = factory
	}
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

// ConfiguredWrongly reports the mistakes of a configuration, one a line, and
// returns the exit code for them.
func ConfiguredWrongly(err error) int {
	lines := strings.ReplaceAll(err.Error(), "\n", "\n  - ")
	fmt.Fprintf(os.Stderr, "The configuration has mistakes:\n  - %s\n", lines)
	return 2
}
