package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/septemberai/orch/client"
)

// invocation is one call of a command.
type invocation struct {
	env    *Env
	common *common
	client *client.Client
	args   []string
}

// do runs a command until it ends or somebody interrupts it.
func (in *invocation) do(run func(context.Context, *invocation) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if in.client != nil {
		in.client.HTTP = &http.Client{Timeout: in.common.timeout}
	}
	err := run(ctx, in)
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted; what was begun may go on")
	}
	return err
}

// show prints an answer: as JSON, or as a table.
func (in *invocation) show(answer any, t *table) error {
	if in.common.json {
		return in.printJSON(answer, "  ")
	}
	return t.print(in.env.Out)
}

func (in *invocation) printJSON(v any, indent string) error {
	enc := json.NewEncoder(in.env.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	return enc.Encode(v)
}

// say prints a line that is no answer, for a person alone.
func (in *invocation) say(format string, args ...any) {
	if !in.common.json {
		_, _ = fmt.Fprintf(in.env.Err, format+"\n", args...)
	}
}

// describe is an error in words for a person: what the service said, and what to
// look for in its log.
func describe(err error) string {
	var e *client.Error
	if !errors.As(err, &e) {
		text := err.Error()
		var call *url.Error
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			text += "\n  Is the service running? " + urlVar + " says where it is."
		case errors.As(err, &call) && call.Timeout():
			text = "the service did not answer in time (-timeout); what was begun may go on"
		}
		return clean(text)
	}
	if e.Code == "" {
		return fmt.Sprintf("the answer has status %d and is not the service's; does %s name it?", e.Status, urlVar)
	}
	facts := []string{"code " + string(e.Code), "request " + e.RequestID}
	if e.RetryAfter > 0 {
		facts = append(facts, "try again in "+e.RetryAfter.Round(time.Second).String())
	}
	return clean(e.Message) + "\n  " + clean(strings.Join(facts, ", "))
}
