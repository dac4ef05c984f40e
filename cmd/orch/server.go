package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/internal/cmdline"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/service"
)

type serverCommand struct{}

func (*serverCommand) Synopsis() string { return "Run the service" }

func (*serverCommand) Help() string {
	var b strings.Builder
	b.WriteString(`Usage: orch server

  Run one replica of the service until SIGINT or SIGTERM; then it stops
  accepting, finishes what is in flight and exits. It is configured by the
  environment:

`)
	w := tabwriter.NewWriter(&b, 2, 0, 2, ' ', 0)
	for _, v := range config.Variables() {
		def := v.Default
		if def == "" {
			def = "-"
		}
		_, _ = fmt.Fprintf(w, "  %s\t%s\t%s\n", v.Name, def, v.Description)
	}
	_ = w.Flush()
	b.WriteString(`
  The clients' own variables say where the others are: NOMAD_ADDR, NOMAD_TOKEN,
  CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, VAULT_ADDR, VAULT_TOKEN, and their TLS
  variables (NOMAD_CACERT, CONSUL_CACERT, VAULT_CACERT, ...).

  GOGC is Go's own too: how much garbage may gather before it is collected, in
  percent of what is in use (default 100). A higher one trades memory for less
  CPU time per admit.

  SIGHUP reads ORCH_ADMIN_KEY_FILE again.

  A second SIGINT or SIGTERM ends the process at once; another replica, or the
  next start, finishes what was in flight.

  Exit codes: 0 stopped on request, 1 failed, 2 configured wrongly, 3 ended at
  once by a second signal.`)
	return b.String()
}

func (c *serverCommand) Run(args []string) int {
	if len(args) > 0 {
		fmt.Fprintln(os.Stderr, c.Help())
		return 2
	}
	cfg, err := config.Load(os.Environ())
	if err = errors.Join(err, service.CheckClients()); err != nil {
		return cmdline.ConfiguredWrongly(err)
	}
	ctx, stop := untilSignal(context.Background())
	defer stop()
	log := hclog.New(&hclog.LoggerOptions{Name: "orch", Level: hclog.LevelFromString(cfg.LogLevel), JSONFormat: cfg.LogJSON, Output: os.Stderr})
	svc, err := service.New(ctx, cfg, service.Clients{}, log)
	if errors.Is(err, audit.ErrUnusable) {
		return cmdline.ConfiguredWrongly(err)
	}
	if err == nil {
		stopReloads := onHangup(svc.ReloadAdminKey)
		err = svc.Run(ctx)
		stopReloads()
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// endedAtOnce is the exit code of a process that a second signal ended.
const endedAtOnce = 3

// untilSignal returns a context that ends at the first SIGINT or SIGTERM. The
// second one ends the process, until stop.
func untilSignal(parent context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	signals, quit, ended := make(chan os.Signal, 2), make(chan struct{}), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		defer close(ended)
		for {
			select {
			case s := <-signals:
				if ctx.Err() != nil {
					fmt.Fprintf(os.Stderr, "orch: %s again: ended at once; what was in flight is finished by another replica or the next start\n", s)
					os.Exit(endedAtOnce)
				}
				cancel()
			case <-quit:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(quit)
		<-ended
		cancel()
	}
}

// onHangup calls do for every SIGHUP until stop, which waits for a call under
// way.
func onHangup(do func()) (stop func()) {
	hangup, quit, ended := make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for {
			select {
			case <-hangup:
				do()
			case <-quit:
				return
			}
		}
	}()
	return func() {
		signal.Stop(hangup)
		close(quit)
		<-ended
	}
}
