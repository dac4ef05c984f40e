// Package remote is the part of the command line that calls the service.
package remote

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/cli"
	"github.com/posener/complete"
)

// Exit codes of every command.
const (
	exitOK     = 0
	exitFailed = 1
	exitWrong  = 2 // called wrongly: nothing was done
)

// spec is one command: how it is called and what it does. Its flags are
// variables of the function that makes it, so each call has its own.
type spec struct {
	name     string   // with its group: "engine show"
	args     []string // names of its arguments, all required
	synopsis string   // one line
	about    string   // the text of its help
	examples []string
	needs    need
	flags    func(*flag.FlagSet)
	// predict says how the values of flags and the argument are completed; key ""
	// is the argument.
	predict map[string]complete.Predictor
	// ask is the question to answer with yes before anything is done; nil: none.
	ask func(args []string) (question string)
	run func(ctx context.Context, in *invocation) error
}

// command is a spec for the library.
type command struct {
	*spec
	env *Env
}

// common are the flags that every command has.
type common struct {
	json, yes bool
	timeout   time.Duration
}

// defaultTimeout is longer than any operation of the service takes with its
// default boot timeout.
const defaultTimeout = 5 * time.Minute

func (c *command) flagSet() (*flag.FlagSet, *common) {
	f, common := flag.NewFlagSet(c.name, flag.ContinueOnError), new(common)
	f.SetOutput(io.Discard) // what is wrong is told in one place, below
	f.Usage = func() {}
	if c.flags != nil {
		c.flags(f)
	}
	if c.ask != nil {
		f.BoolVar(&common.yes, "yes", false, "do not ask")
	}
	if c.needs != needsNothing {
		f.BoolVar(&common.json, "json", false, "print JSON for scripts")
		f.DurationVar(&common.timeout, "timeout", defaultTimeout, "how long to wait for an answer of the service; 0: indefinitely")
	}
	return f, common
}

// Synopsis is the command in one line.
func (c *command) Synopsis() string { return c.synopsis }

// usage is how the command is called.
func (c *command) usage() string {
	words := []string{"orch", c.name}
	if c.flags != nil || c.needs != needsNothing {
		words = append(words, "[options]")
	}
	for _, a := range c.args {
		words = append(words, "<"+a+">")
	}
	return strings.Join(words, " ")
}

// Help tells how the command is called, its flags and examples.
func (c *command) Help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s\n\n%s\n", c.usage(), indent(c.about))
	if f, _ := c.flagSet(); c.needs != needsNothing || c.flags != nil {
		b.WriteString("\nOptions:\n")
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		f.VisitAll(func(f *flag.Flag) {
			value, what := flag.UnquoteUsage(f)
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
				what += " (default " + f.DefValue + ")"
			}
			_, _ = fmt.Fprintf(w, "  %s\t%s\n", strings.TrimSpace("-"+f.Name+" "+value), what)
		})
		_ = w.Flush()
	}
	if len(c.examples) > 0 {
		fmt.Fprintf(&b, "\nExamples:\n  %s\n", strings.Join(c.examples, "\n  "))
	}
	b.WriteString(c.needs.help())
	return strings.TrimRight(b.String(), "\n")
}

// Run parses the arguments and does what the command does.
func (c *command) Run(args []string) int {
	in := &invocation{env: c.env}
	f, common := c.flagSet()
	in.common = common
	err := parse(f, args, &in.args)
	if err == nil && len(in.args) != len(c.args) {
		err = wrong("%d arguments are given, %d wanted", len(in.args), len(c.args))
	}
	for i, a := range in.args {
		if err == nil && a == "" {
			err = wrong("the %s is empty", c.args[i])
		}
	}
	if err == nil && c.needs != needsNothing {
		in.client, err = c.env.client(c.needs)
	}
	if err == nil && c.ask != nil && !common.yes {
		err = c.env.confirm(c.ask(in.args))
	}
	if err == nil {
		err = in.do(c.run)
	}
	return c.end(err)
}

// end tells an error and returns the exit code.
func (c *command) end(err error) int {
	var called *wrongError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errNo):
		return exitFailed
	case errors.As(err, &called):
		_, _ = fmt.Fprintf(c.env.Err, "orch %s: %s\n\nUsage: %s\n(orch %s -help tells more)\n", c.name, clean(err.Error()), c.usage(), c.name)
		return exitWrong
	}
	_, _ = fmt.Fprintf(c.env.Err, "orch %s: %s\n", c.name, describe(err))
	return exitFailed
}

// parse reads flags before, between and after the arguments; "--" ends the flags.
func parse(f *flag.FlagSet, args []string, into *[]string) error {
	for {
		if err := f.Parse(args); err != nil {
			return wrong("%v", err)
		}
		rest := f.Args()
		if consumed := len(args) - len(rest); consumed > 0 && args[consumed-1] == "--" {
			*into = append(*into, rest...)
			return nil
		}
		if len(rest) == 0 {
			return nil
		}
		*into = append(*into, rest[0])
		args = rest[1:]
	}
}

// AutocompleteArgs says what the arguments may be.
func (c *command) AutocompleteArgs() complete.Predictor {
	if p := c.predict[""]; p != nil {
		return p
	}
	return complete.PredictNothing
}

// AutocompleteFlags says which flags there are, and what their values may be.
func (c *command) AutocompleteFlags() complete.Flags {
	all := complete.Flags{}
	f, _ := c.flagSet()
	f.VisitAll(func(f *flag.Flag) {
		p := c.predict[f.Name]
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); p == nil && (!ok || !b.IsBoolFlag()) {
			p = complete.PredictAnything
		}
		all["-"+f.Name] = p
	})
	return all
}

// wrongError says that a command was called wrongly.
type wrongError struct{ text string }

func (e *wrongError) Error() string { return e.text }

func wrong(format string, args ...any) error { return &wrongError{fmt.Sprintf(format, args...)} }

// errNo ends a command with exit code 1 when everything has been said.
var errNo = errors.New("no")

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

var _ cli.CommandAutocomplete = (*command)(nil)
