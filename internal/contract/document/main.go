// Command document writes docs/metrics.md to the file in its argument.
package main

import (
	"fmt"
	"os"

	"github.com/septemberai/orch/internal/contract"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "Usage: document FILE")
		os.Exit(2)
	}
	text, err := contract.Document()
	if err == nil {
		err = os.WriteFile(os.Args[1], []byte(text), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
