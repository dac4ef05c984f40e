// Package cmdline is the command line of this repository's executables: what a
// command is, how it is parsed, asks, prints and ends, and their version.
//
// Commands are run by hashicorp/cli. Nomad, Consul and Vault are built on it, so
// who operates orch knows its habits: flags with one dash, groups of commands,
// completion by the executable itself. Cobra has POSIX flags: every -json would
// have become --json, and with it every script. What hashicorp/cli leaves to its
// user is here, once: a [Command] is data, and one type parses, asks, runs and
// documents all of them.
package cmdline

import (
	"fmt"
	"io"
	"os"

	"github.com/mattn/go-isatty"
)

// Exit codes of every command; a command may have more, which its Codes tell.
const (
	exitOK     = 0
	exitFailed = 1
	exitWrong  = 2 // called wrongly: nothing was done
)

// exitCodes tells the codes in help and in the reference.
const exitCodes = "0 done, 1 failed, 2 called wrongly: nothing was done"

// Env is what commands see of the world.
type Env struct {
	In            io.Reader
	Out, Err      io.Writer
	InTTY, ErrTTY bool // they are terminals
	Colour        bool // Out is a terminal that may be given colours
	Getenv        func(string) string
	// ConfigDir returns the directory of the user's configuration files.
	ConfigDir func() (string, error)
}

// OS is the environment of this process. Colours are for terminals, unless
// NO_COLOR is set (https://no-color.org) or TERM is dumb.
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

// wrongError says that a command was called wrongly.
type wrongError struct{ text string }

func (e *wrongError) Error() string { return e.text }

// Wrong is the error of a command that was called wrongly: it ends with exit code
// 2, and nothing was done.
func Wrong(format string, args ...any) error { return &wrongError{fmt.Sprintf(format, args...)} }

// codeError ends a command with a code of its own.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// WithCode makes an error end its command with an exit code of its own.
func WithCode(code int, err error) error { return &codeError{code, err} }
