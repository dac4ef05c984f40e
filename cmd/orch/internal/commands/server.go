package commands

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/internal/cmdline"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/ops"
	"github.com/septemberai/orch/internal/service"
)

func server(*cmdline.Env) *cmdline.Command {
	check := false
	return &cmdline.Command{
		Name: "server", Synopsis: "Run the service",
		About: `Run one replica of the service until SIGINT or SIGTERM. Then /ready returns 503
for ORCH_DRAIN_DELAY_S while calls are still served; afterwards it stops accepting
connections, finishes what is in progress, and exits. A second SIGINT or SIGTERM
ends the process at once; another replica, or the next start, finishes operations in
progress. SIGHUP reads files again (admin key, certificates, tokens). The service is configured
by environment variables: docs/configuration.md and "orch server -help" list them.

With -check, nothing is served: the configuration, the connections, each right that the
service needs in Nomad, Consul and Vault, the settings of the nodes' agents and the audit
log's database are checked, and what is missing is listed with its remedy.`,
		Examples: []string{
			"ORCH_ADMIN_KEY_FILE=/etc/orch/admin-key ORCH_ENGINE_IMAGE=registry.example.com/engine:1.4 \\\n    ORCH_TLS_CERT_FILE=/etc/orch/tls.pem ORCH_TLS_KEY_FILE=/etc/orch/tls-key.pem orch server",
			"orch server -check",
		},
		Flags: func(f *flag.FlagSet) {
			f.BoolVar(&check, "check", false, "check everything that the service needs, and exit: 1 if something is missing")
		},
		JSON:       true,
		Codes:      fmt.Sprintf("%d ended at once by a second signal", endedAtOnce),
		More:       settings,
		OwnSignals: true,
		Run: func(ctx context.Context, call *cmdline.Call) error {
			if check {
				return checkServer(ctx, call)
			}
			return serve(ctx)
		},
	}
}

// settings lists the environment variables of the service.
func settings() string {
	var b strings.Builder
	b.WriteString("Environment:\n")
	w := tabwriter.NewWriter(&b, 2, 0, 2, ' ', 0)
	for _, v := range config.Variables() {
		_, _ = fmt.Fprintf(w, "  %s\t%s\t%s\n", v.Name, cmp.Or(v.Default, "-"), v.Description)
	}
	_ = w.Flush()
	b.WriteString(`
The addresses of Nomad, Consul and Vault are in their clients' own variables:
NOMAD_ADDR, NOMAD_TOKEN, CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, VAULT_ADDR,
VAULT_TOKEN, and the TLS variables (NOMAD_CACERT, CONSUL_CACERT, VAULT_CACERT, ...).
Tokens may be in files: NOMAD_TOKEN_FILE, CONSUL_HTTP_TOKEN_FILE, VAULT_TOKEN_FILE. Files
are read again when they change.

GOGC is Go's own variable: how much the heap may grow before a garbage collection,
in percent of the memory in use (default 100). A higher value needs more memory, but
less CPU time per admit.`)
	return b.String()
}

func serve(ctx context.Context) error {
	cfg, err := config.Load(os.Environ())
	if err = errors.Join(err, service.CheckClients()); err != nil {
		return cmdline.ConfiguredWrongly(err)
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	log := hclog.New(&hclog.LoggerOptions{Name: "orch", Level: hclog.LevelFromString(cfg.LogLevel), JSONFormat: cfg.LogJSON, Output: os.Stderr})
	for _, name := range config.Unknown(os.Environ()) {
		log.Warn("a variable of the environment is not known, and has no effect: is it misspelt? (orch server -help lists all)", "variable", name)
	}
	build := cmdline.Build()
	stopTraces, err := ops.ExportTraces(ctx, os.Getenv, build.Version, log.Named("traces"))
	if err != nil {
		return cmdline.ConfiguredWrongly(err)
	}
	defer stopTraces()
	svc, err := service.New(ctx, cfg, service.Clients{}, log)
	if errors.Is(err, audit.ErrUnusable) {
		return cmdline.ConfiguredWrongly(err)
	}
	if err == nil {
		svc.Built(build.Version, build.Commit)
		stopReloads := onHangup(svc.Reload)
		tellManager(log, daemon.SdNotifyReady) // it listens
		defer context.AfterFunc(ctx, func() { tellManager(log, daemon.SdNotifyStopping) })()
		err = svc.Run(ctx)
		stopReloads()
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// tellManager reports a state to the service manager, if that wants to know (sd_notify of
// systemd).
func tellManager(log hclog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("cannot report the state to the service manager", "state", state, "error", err)
	}
}

// endedAtOnce is the exit code of a process that a second signal ended.
const endedAtOnce = 3

// untilSignal returns a context that ends at the first SIGINT or SIGTERM. Until stop is
// called, a second one ends the process.
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
					fmt.Fprintf(os.Stderr, "orch: %s again: ended at once; another replica or the next start finishes operations in progress\n", s)
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

// onHangup calls do for every SIGHUP until stop, which waits for a call of do in progress.
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
