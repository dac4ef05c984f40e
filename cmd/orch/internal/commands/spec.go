package commands

import (
	"context"
	"errors"
	"flag"
	"fmt"
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
	args     []string // names of its arguments; an optional last one is in brackets
	synopsis string   // one line
	about    string   // the text of its help
	examples []string
	codes    string // exit codes besides the common ones
	needs    need
	flags    func(*flag.FlagSet)
	predict  map[string]complete.Predictor
	// product is the help text of the flag -product; empty: there is no such flag.
	product string
	// impliesAdmin reports whether the flags are only for the admin, so that the command
	// needs the admin key, as with -admin and -product; nil: no flag is, not even -product.
	impliesAdmin func() bool
	// timeout is the help text of the flag -timeout; empty: it limits each call of the
	// service.
	timeout string
	ask     func(args []string) (question string)
	run     func(ctx context.Context, in *invocation) error
}

// invocation is one execution of such a command.
type invocation struct {
	*cmdline.Call
	client  *client.Client
	target  *target
	timeout time.Duration
	product string // of -product
	admin   bool   // of -admin
}

// defaultTimeout is longer than any operation of the service with the default boot timeout.
const defaultTimeout = 5 * time.Minute

// command converts the command for the framework.
func (s *spec) command(env *cmdline.Env) *cmdline.Command {
	in := &invocation{}
	var choice choice
	predict := map[string]complete.Predictor{"context": predictContexts(env)}
	for name, p := range s.predict {
		predict[name] = p
	}
	timeout := s.timeout
	if timeout == "" {
		timeout = "maximum time to wait for a response of the service; 0: no limit"
	}
	ask := s.ask
	if ask != nil {
		// The question names the service, so that the user knows which one is changed.
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
			f.StringVar(&choice.address, "address", "", "the `URL` of the service (default: "+urlVar+", the context's, or "+defaultURL+")")
			f.StringVar(&choice.context, "context", "", "call the service of this `context` (default: the selected one)")
			f.DurationVar(&in.timeout, "timeout", defaultTimeout, timeout)
			if s.needs == needsEither {
				f.BoolVar(&in.admin, "admin", false, "call as the admin, even if there is a platform key")
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
			if in.admin || s.impliesAdmin != nil && (in.product != "" || s.impliesAdmin()) {
				needs = needsAdminKey
			}
			in.client, err = in.target.client(c.Env, needs)
			if err == nil {
				in.client.HTTP.Timeout = in.timeout
			}
			return err
		},
		Run: func(ctx context.Context, _ *cmdline.Call) error {
			err := s.run(ctx, in)
			if err != nil && ctx.Err() != nil {
				return errors.New("interrupted; an operation that was started may continue")
			}
			return described(err)
		},
	}
}

// described describes an error of the service for the user.
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

// describe returns the text of an error for the user: the service's message, and the id to
// search for in its log.
func describe(err error) string {
	var e *client.Error
	if !errors.As(err, &e) {
		text := err.Error()
		var call *url.Error
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			text += "\n  Is the service running? -address, " + urlVar + " or the context sets its address."
		case errors.As(err, &call) && call.Timeout():
			text = "the service did not respond in time (-timeout); an operation that was started may continue"
		}
		return cmdline.Clean(text)
	}
	if e.Code == "" {
		return fmt.Sprintf("the response has status %d and is not from the service; check the address (-address, %s)", e.Status, urlVar)
	}
	facts := []string{"code " + string(e.Code), "request " + e.RequestID}
	if e.RetryAfter > 0 {
		facts = append(facts, "retry in "+e.RetryAfter.Round(time.Second).String())
	}
	return cmdline.Clean(e.Message) + "\n  " + cmdline.Clean(strings.Join(facts, ", "))
}
