// Command orch is the service and its command line.
package main

import (
	"os"

	"github.com/septemberai/orch/cmd/orch/internal/commands"
	"github.com/septemberai/orch/internal/cmdline"
)

func main() { os.Exit(commands.Program().Run(cmdline.OS(), os.Args[1:])) }
