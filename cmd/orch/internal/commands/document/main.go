// Command document writes docs/cli.md, to the file that it is given.
package main

import (
	"fmt"
	"os"

	"github.com/septemberai/orch/cmd/orch/internal/commands"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "Usage: document FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], []byte(commands.Document()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
