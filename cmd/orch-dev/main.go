// Command orch-dev is for developers of orch, and for trying it: it runs real agents and the
// service on this machine.
package main

import (
	"os"

	"github.com/septemberai/orch/internal/cmdline"
)

func main() { os.Exit(program().Run(cmdline.OS(), os.Args[1:])) }

func program() *cmdline.Program {
	return &cmdline.Program{Name: "orch-dev", Commands: []func(*cmdline.Env) *cmdline.Command{devCommand, demoCommand, toolsCommand}}
}
