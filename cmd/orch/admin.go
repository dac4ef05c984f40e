package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/septemberai/orch/client"
)

// adminHelp ends the help of every command that calls the service as the admin.
const adminHelp = `
  ORCH_URL says where the service is (http://127.0.0.1:8000), ORCH_ADMIN_KEY
  holds the admin key.

  Exit codes: 0 done, 1 failed, 2 called wrongly.`

// adminCommand calls the service as the admin. Exit code 2: the call is wrong,
// and nothing was asked of the service.
func adminCommand(help string, args []string, wanted int, flags func(*flag.FlagSet), call func(ctx context.Context, c *client.Client, args []string) error) int {
	f := flag.NewFlagSet("orch", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	flags(f)
	var rest []string
	err := f.Parse(args)
	for err == nil && f.NArg() > 0 { // flags may stand behind arguments
		rest = append(rest, f.Arg(0))
		err = f.Parse(f.Args()[1:])
	}
	key := os.Getenv("ORCH_ADMIN_KEY")
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Println(help)
		return 0
	case err == nil && len(rest) != wanted:
		err = fmt.Errorf("it takes %d arguments, not %d", wanted, len(rest))
	case err == nil && key == "":
		err = errors.New("ORCH_ADMIN_KEY is not set")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\n\n%s\n", err, help)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := &client.Client{BaseURL: cmp.Or(os.Getenv("ORCH_URL"), "http://127.0.0.1:8000"), AdminKey: key}
	err = call(ctx, c, rest)
	var wrong wrongCall
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintf(os.Stderr, "%v\n\n%s\n", err, help)
		return 2
	case err != nil:
		fmt.Fprintln(os.Stderr, "orch: "+err.Error())
		return 1
	}
	return 0
}

// wrongCall is the error of a call whose flags do not go together; nothing was asked
// of the service.
type wrongCall string

func (w wrongCall) Error() string { return string(w) }

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// confirmed asks a question on the terminal; only "yes" is one.
func confirmed(question string) bool {
	fmt.Fprint(os.Stderr, question+" Type yes: ")
	var answer string
	_, _ = fmt.Scanln(&answer) // nothing is no
	return strings.TrimSpace(answer) == "yes"
}
