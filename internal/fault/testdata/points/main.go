// Command points passes two fault points, one of them twice, and ends with exit
// code 7.
package main

import (
	"os"

	"github.com/septemberai/orch/internal/fault"
)

func main() {
	fault.Hit("another")
	fault.Hit("here")
	fault.Hit("here")
	os.Exit(7)
}
