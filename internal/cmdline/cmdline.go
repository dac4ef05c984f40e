// Package cmdline is the framework of this repository's command lines: the form of a
// command, parsing, confirmation, output, exit codes, and the version.
//
// Commands are run by hashicorp/cli. Nomad, Consul and Vault use it too, so operators of
// orch know its conventions: flags with one dash, groups of commands, completion by the
// executable itself. Cobra has POSIX flags, so every -json, and all scripts that use it,
// would have become --json. This package adds what hashicorp/cli leaves to its users: a
// [Command] is data, and one type parses, confirms, runs and documents all commands.
package cmdline

import (
	"fmt"
	"io"
	"os"

	"github.com/mattn/go-isatty"
)

// Exit codes of all commands. A command may have more, listed in its Codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitWrong  = 2 // invalid arguments: nothing was done
)

// exitCodes describes the codes in the help and in the reference.
const exitCodes = "0 done, 1 failed, 2 invalid arguments: nothing was done"

// Env is a command's connection to the process: streams, environment and files.
type Env struct {
	In            io.Reader
	Out, Err      io.Writer
	InTTY, ErrTTY bool // whether they are terminals
	Colour        bool // whether Out is a terminal that supports colours
	Getenv        func(string) string
	// ConfigDir returns the user's directory for configuration files.
	ConfigDir func() (string, error)
}

// OS returns the Env of this process. Colours are used on terminals, unless NO_COLOR is set
// (https://no-color.org) or TERM is dumb.
func OS() *Env {
	return &Env{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		InTTY: isatty.IsTerminal(os.Stdin.Fd()), ErrTTY: isatty.IsTerminal(os.Stderr.Fd()),
		Colour: coloured(isatty.IsTerminal(os.Stdout.Fd()), os.Getenv),
		Getenv: os.Getenv, ConfigDir: os.UserConfigDir,
	}
}

func coloured(terminal bool, getenv func(string) string) bool {
	return terminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

// wrongError is the error of a command with invalid arguments.
type wrongError struct{ text string }

func (e *wrongError) Error() string { return e.text }

// Wrong returns the error of a command with invalid arguments: it ends with exit code 2,
// and nothing was done.
func Wrong(format string, args ...any) error { return &wrongError{fmt.Sprintf(format, args...)} }

// codeError ends a command with a special exit code.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// WithCode makes an error end its command with the given exit code.
func WithCode(code int, err error) error { return &codeError{code, err} }
