// Package dev runs the whole system on one machine: real agents, the service and a demo
// product. The commands `orch-dev dev` and `orch-dev demo` use it.
package dev

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/service"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/server"
)

// Options are the settings of the system.
type Options struct {
	Stack devstack.Config
	// Vars are ORCH_ variables that replace the defaults.
	Vars     map[string]string
	Progress func(line string)
	LogTo    io.Writer
}

// System is a running system: agents, service and a product named demo.
type System struct {
	Stack    *devstack.Stack
	URL      string
	OpsURL   string // of the listener for operators; "" if its default address is in use
	AdminKey string
	Product  *client.Registered

	scheduler *scheduler.Scheduler
	stop      context.CancelFunc
	served    chan error
}

// readyTimeout limits the wait for the service after the agents are ready.
const readyTimeout = 60 * time.Second

// drain is how long Stop waits for calls in progress. It is short, because their engines end
// with the agents.
const drain = 2 * time.Second

// The images of a dev system's engines and of the worker of snapshots: the executables in
// the directory of this one, or with the docker driver the images that `make engine-image`
// builds.
const (
	engineName  = "reference-engine"
	engineImage = "orch/reference-engine:1"
	workerName  = "orch-brain"
	workerImage = "orch/orch-brain:1"
)

// snapshots is the directory of snapshots in the state directory of the agents.
const snapshots = "snapshots"

// Check returns an error that names every invalid ORCH_ variable.
func Check(vars map[string]string) error {
	_, err := settings(vars, defaultAdminKey(vars), "/", "", "default", false)
	return err
}

func defaultAdminKey(vars map[string]string) string {
	if key := vars["ORCH_ADMIN_KEY"]; key != "" {
		return key
	}
	return "dev-" + strings.ToLower(rand.Text())
}

// Start starts the agents and the service, and registers the product "demo". If it fails,
// nothing keeps running.
func Start(ctx context.Context, o Options) (sys *System, err error) {
	binDir, err := engineDir()
	if err != nil {
		return nil, err
	}
	sys = &System{AdminKey: defaultAdminKey(o.Vars), served: make(chan error, 1)}
	// Invalid settings are reported before anything is started.
	cfg, err := settings(o.Vars, sys.AdminKey, binDir, "", "default", false)
	if err != nil {
		return nil, err
	}
	if err := server.Free(cfg.Addr); err != nil {
		return nil, err
	}
	if sys.Stack, err = devstack.Start(ctx, o.Stack); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, sys.Stop())
			sys = nil
		}
	}()
	o.Progress("starting the service")
	if cfg, err = settings(o.Vars, sys.AdminKey, binDir, sys.Stack.Dir, sys.Stack.Namespace, !o.Stack.Locked); err != nil {
		return sys, err
	}
	if err := os.MkdirAll(filepath.Join(sys.Stack.Dir, snapshots), 0o700); err != nil {
		return sys, err
	}
	access, err := sys.Stack.Deployment(ctx, cfg.ConsulPrefix, cfg.VaultMount)
	if err != nil {
		return sys, err
	}
	svc, err := service.New(ctx, cfg, service.Clients(access), hclog.New(&hclog.LoggerOptions{Name: "orch", Level: hclog.LevelFromString(cfg.LogLevel), JSONFormat: cfg.LogJSON, Output: o.LogTo}))
	if err != nil {
		return sys, err
	}
	sys.scheduler, svc.Drain = svc.Scheduler, drain
	// The end of ctx does not end the service, because Stop first waits for calls in progress.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	sys.stop = stop
	go func() { sys.served <- svc.Run(running) }()
	sys.URL = "http://" + strings.Replace(svc.Server.Addr().String(), "[::]", "127.0.0.1", 1)
	if addr := svc.OpsAddr(); addr != "" {
		sys.OpsURL = "http://" + addr
	}
	if err := sys.awaitReady(ctx); err != nil {
		return sys, err
	}
	o.Progress("registering the product \"demo\"")
	sys.Product, err = sys.Admin().RegisterProduct(ctx, "demo", "Demo product", nil)
	return sys, err
}

func settings(own map[string]string, adminKey, binDir, stateDir, namespace string, open bool) (*config.Config, error) {
	vars := map[string]string{
		"ORCH_ADDR": "127.0.0.1:8000", "ORCH_DRAIN_DELAY_S": "0", "ORCH_ADMIN_KEY": adminKey, "ORCH_ENGINE_DRIVER": "raw_exec",
		"ORCH_ENGINE_IMAGE": engineName, "ORCH_ENGINE_BIN_DIR": binDir, "ORCH_NOMAD_NAMESPACE": namespace,
		"ORCH_ALLOW_OPEN_NOMAD":       strconv.FormatBool(open),
		"ORCH_DATABASE_URL":           "sqlite://" + filepath.Join(stateDir, "audit.db"),
		"ORCH_SNAPSHOT_URL":           (&url.URL{Scheme: "file", Path: filepath.Join("/", stateDir, snapshots)}).String(),
		"ORCH_ENGINE_ENV_PASSTHROUGH": "LLM_API_KEY,OPENAI_API_KEY", "ORCH_LOG_LEVEL": "warn",
	}
	if own["ORCH_ENGINE_DRIVER"] == string(jobs.Docker) {
		vars["ORCH_ENGINE_IMAGE"], vars["ORCH_SNAPSHOT_WORKER"] = engineImage, workerImage
	}
	for name, value := range own {
		if value != "" {
			vars[name] = value
		}
	}
	environ := make([]string, 0, len(vars))
	for name, value := range vars {
		environ = append(environ, name+"="+value)
	}
	for _, name := range strings.Split(vars["ORCH_ENGINE_ENV_PASSTHROUGH"], ",") {
		if value, set := os.LookupEnv(name); set {
			environ = append(environ, name+"="+value)
		}
	}
	return config.Load(environ)
}

func (s *System) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	c := &client.Client{BaseURL: s.URL}
	for {
		err := c.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the service did not become ready: %w", err)
		case err := <-s.served:
			s.served <- err
			return fmt.Errorf("the service stopped: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Admin returns a client with the admin key.
func (s *System) Admin() *client.Client { return &client.Client{BaseURL: s.URL, AdminKey: s.AdminKey} }

// Demo returns a client with the demo product's key.
func (s *System) Demo() *client.Client {
	return &client.Client{BaseURL: s.URL, PlatformKey: s.Product.PlatformAPIKey}
}

// Served returns a channel that gets the service's error if the service ends by itself.
func (s *System) Served() <-chan error { return s.served }

// Stop ends the service, and then the agents and everything that they run.
func (s *System) Stop() error {
	var errs []error
	if s.stop != nil {
		s.stop()
		errs = append(errs, <-s.served)
	}
	errs = append(errs, s.Stack.Stop())
	return errors.Join(errs...)
}

// engineDir returns the directory of this executable, which must also contain the reference
// engine and the worker of snapshots.
func engineDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the reference engine: %w", err)
	}
	dir := filepath.Dir(self)
	for _, name := range []string{engineName, workerName} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("there is no %s in the directory of %s: run `make build` and use bin/orch-dev", name, filepath.Base(self))
		}
	}
	return dir, nil
}
