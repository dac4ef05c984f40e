package cmdline

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/cli"
	"github.com/posener/complete"
)

// Command is one command. Its flags are variables of the function that creates it, so that
// each call has its own.
type Command struct {
	Name     string   // with its group: "engine show"
	Args     []string // names of its arguments; an optional last one is in brackets
	Synopsis string   // one line
	About    string   // the text of its help
	Examples []string // lines for a shell
	Codes    string   // exit codes besides the common ones, as in "3 ..."; may be empty
	// More returns the end of the help, which is not in the reference; may be nil.
	More func() string

	Flags func(*flag.FlagSet) // may be nil
	JSON  bool                // whether it has the flag -json
	// Predict completes the values of flags, by name, and of the argument, by the key "".
	Predict map[string]complete.Predictor

	// Prepare is called before the confirmation; may be nil.
	Prepare func(*Call) error
	// Ask returns the question that the user must answer with yes; nil: there is none.
	Ask func(args []string) (question string)
	// Run executes the command. Its context ends when the process is interrupted.
	Run func(context.Context, *Call) error
	// OwnSignals: Run handles SIGINT and SIGTERM itself.
	OwnSignals bool
}

// Call is one execution of a command.
type Call struct {
	Env  *Env
	Args []string
	JSON bool // whether -json was given
	yes  bool
}

// command adapts a Command to hashicorp/cli.
type command struct {
	*Command
	program string
	env     *Env
}

func (c *command) flagSet() (*flag.FlagSet, *Call) {
	f, call := flag.NewFlagSet(c.Name, flag.ContinueOnError), &Call{Env: c.env}
	f.SetOutput(io.Discard) // end reports all errors
	f.Usage = func() {}
	if c.Flags != nil {
		c.Flags(f)
	}
	if c.Ask != nil {
		f.BoolVar(&call.yes, "yes", false, "do not ask for confirmation")
	}
	if c.JSON {
		f.BoolVar(&call.JSON, "json", false, "print JSON for scripts")
	}
	return f, call
}

func (c *command) hasFlags() bool { return c.Flags != nil || c.Ask != nil || c.JSON }

// Synopsis describes the command in one line.
func (c *command) Synopsis() string { return c.Command.Synopsis }

// usage returns the line with the command's name, flags and arguments.
func (c *command) usage() string {
	words := []string{c.program, c.Name}
	if c.hasFlags() {
		words = append(words, "[options]")
	}
	for _, a := range c.Args {
		if !strings.HasPrefix(a, "[") {
			a = "<" + a + ">"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// Help returns the command's usage, flags, examples and exit codes.
func (c *command) Help() string {
	text := c.reference()
	if c.More != nil {
		text += "\n\n" + strings.TrimRight(c.More(), "\n")
	}
	return text
}

// reference returns the part of the help that is also in the reference.
func (c *command) reference() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s\n\n%s\n", c.usage(), indent(c.About))
	if c.hasFlags() {
		b.WriteString("\nOptions:\n")
		f, _ := c.flagSet()
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		f.VisitAll(func(f *flag.Flag) {
			value, what := flag.UnquoteUsage(f)
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
				what += " (default " + f.DefValue + ")"
			}
			_, _ = fmt.Fprintf(w, "  %s\t%s\n", strings.TrimSpace("-"+f.Name+" "+value), what)
		})
		_ = w.Flush()
	}
	fmt.Fprintf(&b, "\nExamples:\n  %s\n", strings.Join(c.Examples, "\n  "))
	codes := exitCodes
	if !c.OwnSignals {
		codes += ", 130 interrupted (Ctrl-C)"
	}
	if c.Codes != "" {
		codes += ", " + c.Codes
	}
	return b.String() + "\nExit codes: " + codes + "."
}

// Run parses the arguments and executes the command.
func (c *command) Run(args []string) int { return c.end(c.run(args)) }

func (c *command) run(args []string) error {
	f, call := c.flagSet()
	if err := parse(f, args, &call.Args); err != nil {
		return err
	}
	if err := c.count(call.Args); err != nil {
		return err
	}
	if c.Prepare != nil {
		if err := c.Prepare(call); err != nil {
			return err
		}
	}
	if c.Ask != nil && !call.yes {
		if err := c.env.confirm(c.Ask(call.Args)); err != nil {
			return err
		}
	}
	if c.OwnSignals {
		return c.Command.Run(context.Background(), call)
	}
	return interruptible(func(ctx context.Context) error { return c.Command.Run(ctx, call) })
}

// count checks the number of arguments, and that none is empty.
func (c *command) count(args []string) error {
	least := len(c.Args)
	if least > 0 && strings.HasPrefix(c.Args[least-1], "[") {
		least--
	}
	if len(args) < least || len(args) > len(c.Args) {
		wanted := fmt.Sprint(len(c.Args))
		if least < len(c.Args) {
			wanted = fmt.Sprintf("%d or %d", least, len(c.Args))
		}
		noun := "arguments"
		if len(args) == 1 {
			noun = "argument"
		}
		return Wrong("got %d %s, need %s", len(args), noun, wanted)
	}
	for i, a := range args {
		if a == "" {
			return Wrong("the %s is empty", strings.Trim(c.Args[i], "[]"))
		}
	}
	return nil
}

// end reports an error and returns the exit code.
func (c *command) end(err error) int {
	name := c.program + " " + c.Name
	var wrong *wrongError
	var coded *codeError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, ErrReported):
		return exitFailed
	case errors.As(err, &wrong):
		_, _ = fmt.Fprintf(c.env.Err, "%s: %s\n\nUsage: %s\n(%s -help shows more)\n", name, Clean(err.Error()), c.usage(), name)
		return exitWrong
	}
	_, _ = fmt.Fprintf(c.env.Err, "%s: %s\n", name, Clean(err.Error()))
	if errors.As(err, &coded) {
		return coded.code
	}
	return exitFailed
}

// ErrReported ends a command with exit code 1 without a further message.
var ErrReported = errors.New("reported")

// parse reads flags before, between and after the arguments; "--" ends the flags.
func parse(f *flag.FlagSet, args []string, into *[]string) error {
	for {
		if err := f.Parse(args); err != nil {
			return Wrong("%v", err)
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

// AutocompleteArgs completes the arguments.
func (c *command) AutocompleteArgs() complete.Predictor {
	if p := c.Predict[""]; p != nil {
		return p
	}
	return complete.PredictNothing
}

// AutocompleteFlags completes the flags and their values.
func (c *command) AutocompleteFlags() complete.Flags {
	all := complete.Flags{}
	f, _ := c.flagSet()
	f.VisitAll(func(f *flag.Flag) {
		p := c.Predict[f.Name]
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); p == nil && (!ok || !b.IsBoolFlag()) {
			p = complete.PredictAnything
		}
		all["-"+f.Name] = p
	})
	return all
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  "), "  \n", "\n")
}

var _ cli.CommandAutocomplete = (*command)(nil)
