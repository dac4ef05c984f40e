package cmdline

import (
	"errors"
	"strings"
)

// ConfiguredWrongly returns the error of a command whose configuration has mistakes, which
// err lists one per line: exit code 2.
func ConfiguredWrongly(err error) error {
	return WithCode(exitWrong, errors.New("the configuration has mistakes:\n  - "+strings.ReplaceAll(err.Error(), "\n", "\n  - ")))
}
