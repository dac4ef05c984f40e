package commands

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/posener/complete"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

// spec is a command that calls the service.
type spec struct {
	name     string   // with its group: "engine show"
	args     []string // names of its arguments; one in brackets, the last, may be left out
	synopsis string   // one line
	about    string   // the text of its help
	examples []string
	codes    string // its exit codes besides those of all
	needs    need
	flags    func(*flag.FlagSet)
	predict  map[string]complete.Predictor
	// product says what the flag -product is for; empty: there is no such flag.
	product string
	// timeout says what the flag -timeout bounds; empty: each call of the service.
	timeout string
	ask     func(args []string) (question string)
	run     func(ctx context.Context, in *invocation) error
}

// invocation is one call of such a command.
type invocation struct {
	*cmdline.Call
	client  *client.Client
	target  *target
	timeout time.Duration
	product string // of -product
	admin   bool   // of -admin
}

// defaultTimeout is longer than any operation of the service takes with its
// default boot timeout.
const defaultTimeout = 5 * time.Minute

// command is the command for the framework.
func (s *spec) command(env *cmdline.Env) *cmdline.Command {
	in := &invocation{}
	var choice choice
	predict := map[string]complete.Predictor{"context": predictContexts(env)}
	for name, p := range s.predict {
		predict[name] = p
	}
	timeout := s.timeout
	if timeout == "" {
		timeout = "how long to wait for a response of the service; 0: indefinitely"
	}
	ask := s.ask
	if ask != nil {
		// Who confirms sees which service it is about.
		ask = func(args []string) string {
			question := strings.TrimSuffix(s.ask(args), "?")
			if t, err := choose(env, choice); err == nil {
				question += " at " + t.address
			}
			return question + "?"
		}
	}
	return &cmdline.Command{
		Name: s.name, Args: s.args, Synopsis: s.synopsis, About: s.about + "\n\n" + s.needs.help(), Examples: s.examples, Codes: s.codes,
		JSON: true, Predict: predict, Ask: ask,
		Flags: func(f *flag.FlagSet) {
			if s.flags != nil {
				s.flags(f)
			}
			f.StringVar(&choice.address, "address", "", "the `URL` of the service (default: "+urlVar+", the context's, else "+defaultURL+")")
			f.StringVar(&choice.context, "context", "", "call the service of this `context` (default: the one in use)")
			f.DurationVar(&in.timeout, "timeout", defaultTimeout, timeout)
			if s.needs == needsEither {
				f.BoolVar(&in.admin, "admin", false, "call as the admin, although there is a platform key")
			}
			if s.product != "" {
				f.StringVar(&in.product, "product", "", s.product)
			}
		},
		Prepare: func(c *cmdline.Call) (err error) {
			in.Call = c
			if in.target, err = choose(c.Env, choice); err != nil {
				return err
			}
			needs := s.needs
			if in.admin {
				needs = needsAdminKey
			}
			in.client, err = in.target.client(c.Env, needs)
			if err == nil {
				in.client.HTTP = &http.Client{Timeout: in.timeout}
			}
			return err
		},
		Run: func(ctx context.Context, _ *cmdline.Call) error {
			err := s.run(ctx, in)
			if err != nil && ctx.Err() != nil {
				return errors.New("interrupted; what was begun may go on")
			}
			return described(err)
		},
	}
}

// described puts an error of the service into words for a person.
func described(err error) error {
	var refused *client.Error
	var call *url.Error
	if errors.As(err, &refused) || errors.As(err, &call) {
		return &describedError{err}
	}
	return err
}

type describedError struct{ error }

func (d *describedError) Error() string { return describe(d.error) }
func (d *describedError) Unwrap() error { return d.error }

// describe is an error in words for a person: what the service said, and what to
// look for in its log.
func describe(err error) string {
	var e *client.Error
	if !errors.As(err, &e) {
		text := err.Error()
		var call *url.Error
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			text += "\n  Is the service running? -address, " + urlVar + " or the context says where it is."
		case errors.As(err, &call) && call.Timeout():
			text = "the service did not respond in time (-timeout); what was begun may go on"
		}
		return cmdline.Clean(text)
	}
	if e.Code == "" {
		return fmt.Sprintf("the response has status %d and is not the service's; is the address (-address, %s) right?", e.Status, urlVar)
	}
	facts := []string{"code " + string(e.Code), "request " + e.RequestID}
	if e.RetryAfter > 0 {
		facts = append(facts, "try again in "+e.RetryAfter.Round(time.Second).String())
	}
	return cmdline.Clean(e.Message) + "\n  " + cmdline.Clean(strings.Join(facts, ", "))
}
