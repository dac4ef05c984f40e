package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/cmdline"
	"github.com/septemberai/orch/internal/dev"
	"github.com/septemberai/orch/internal/devstack"
)

// stateDir is the directory in which `orch-dev dev` keeps its state, wiped at each start.
// envName is the file in it that a shell can source while the system runs.
const (
	stateDir = ".dev"
	envName  = "env"
)

// demoUser is the user whose engine `orch-dev dev` provisions.
const demoUser = "demo-user-001"

func devCommand(*cmdline.Env) *cmdline.Command {
	var open bool
	return &cmdline.Command{
		Name: "dev", Synopsis: "Run everything on this machine, on real agents",
		About: `Start real Nomad, Consul and Vault agents on loopback, the service on
127.0.0.1:8000, a product named demo and an engine for ` + demoUser + `, and stay up
until Ctrl-C, which leaves nothing behind. State and logs are in .dev/, which is
wiped at each start; ". .dev/env" sets the addresses and keys in a shell.

The agents refuse unknown callers, as in production: ACLs deny by default, TLS uses their
own certificate authority, and engines are in the Nomad namespace "engines". With -open,
they serve everybody over plain HTTP.

ORCH_ADDR, ORCH_DEV_NOMAD_PORT, ORCH_DEV_CONSUL_PORT and ORCH_DEV_VAULT_PORT move the
ports (0: a free one). ORCH_ADMIN_KEY, ORCH_LOG_LEVEL and the other ORCH_ variables
of the service are passed to it. LLM_API_KEY and OPENAI_API_KEY reach the engine if
they are set. With ORCH_ENGINE_DRIVER=docker engines are containers of the image that
"make engine-image" builds. ORCH_TOOLS=build builds the agents from source instead of
looking for a release.`,
		Examples: []string{"orch-dev dev", "ORCH_ADDR=127.0.0.1:9000 orch-dev dev", "orch-dev dev -open"},
		Flags: func(f *flag.FlagSet) {
			f.BoolVar(&open, "open", false, "start agents without ACLs and TLS")
		},
		Run: func(ctx context.Context, _ *cmdline.Call) error { return checkedDev(ctx, open) },
	}
}

// checkedDev runs the system if its settings are right.
func checkedDev(ctx context.Context, open bool) error {
	vars := orchVariables()
	ports, err := devstack.DevPorts(os.Getenv)
	if err = errors.Join(err, dev.Check(vars)); err != nil {
		return cmdline.ConfiguredWrongly(err)
	}
	if err := runDev(ctx, ports, vars, open); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func runDev(ctx context.Context, ports devstack.Ports, vars map[string]string, open bool) (err error) {
	began := time.Now()
	progress := func(line string) { fmt.Printf("%7.1fs  %s\n", time.Since(began).Seconds(), line) }
	progress("looking for nomad, consul and vault")
	binaries, err := devstack.Tools(ctx, devstack.ToolOptions{Progress: progress})
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(stateDir)
	if err != nil {
		return err
	}
	sys, err := dev.Start(ctx, dev.Options{
		Stack:    devstack.Config{Dir: dir, Keep: true, Locked: !open, KeyFile: envName, Ports: ports, Binaries: binaries, Progress: progress, DockerSocket: dockerSocket()},
		Vars:     vars,
		Progress: progress, LogTo: os.Stderr,
	})
	if err != nil {
		return err
	}
	defer func() {
		progress("stopping")
		err = errors.Join(err, sys.Stop())
		progress("stopped; nothing is left running")
	}()
	progress("provisioning an engine for " + demoUser)
	demo, err := sys.Demo().Provision(ctx, demoUser, "")
	var refused *client.Error
	if errors.As(err, &refused) && string(refused.Code) == string(engine.EngineBootFailed) && dockerSocket() != "" && vars["ORCH_ENGINE_IMAGE"] == "" {
		return fmt.Errorf("%w (make engine-image builds the image)", err)
	}
	if err != nil {
		return err
	}
	if err := writeEnv(filepath.Join(dir, envName), sys); err != nil {
		return err
	}
	ui, err := servePages(sys.Stack)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ui.close()) }()
	progress("ready")
	fmt.Print(invitation(sys, demo, ui, talk(demo, vars["ORCH_ENGINE_IMAGE"])))
	select {
	case <-ctx.Done():
		fmt.Println()
		return nil
	case err := <-sys.Served():
		return fmt.Errorf("the service ended: %w", err)
	}
}

// orchVariables returns the ORCH_ variables of this process's environment.
func orchVariables() map[string]string {
	vars := map[string]string{}
	for _, kv := range os.Environ() {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "ORCH_") {
			vars[name] = value
		}
	}
	return vars
}

// dockerSocket returns the socket that Nomad's docker driver may use: one that is set, and
// needed.
func dockerSocket() string {
	if os.Getenv("ORCH_ENGINE_DRIVER") != "docker" {
		return ""
	}
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		return host
	}
	return "unix:///var/run/docker.sock"
}

// writeEnv atomically writes what a shell needs to call the system, as an operator of its
// agents, readable only by its owner.
func writeEnv(file string, sys *dev.System) error {
	lines := []string{
		"ORCH_URL=" + sys.URL, "ORCH_ADMIN_KEY=" + quote(sys.AdminKey), "ORCH_PLATFORM_KEY=" + sys.Product.PlatformAPIKey,
		"NOMAD_NAMESPACE=" + sys.Stack.Namespace,
	}
	if sys.OpsURL != "" {
		lines = append(lines, "ORCH_OPS_URL="+sys.OpsURL)
	}
	for _, variable := range sys.Stack.Operator().Environ() {
		name, value, _ := strings.Cut(variable, "=")
		lines = append(lines, name+"="+quote(value))
	}
	if err := os.WriteFile(file+".new", []byte("export "+strings.Join(lines, "\nexport ")+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// plain matches a value that needs no quotes in a shell.
var plain = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,=-]+$`)

// quote quotes a value for a shell, if that is necessary.
func quote(s string) string {
	if plain.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func invitation(sys *dev.System, e *client.Engine, ui *pages, talk string) string {
	tokens := "token in " + filepath.Join(stateDir, envName)
	token := ""
	if sys.Stack.TLS() != nil {
		token = "     (" + tokens + ")"
	}
	return fmt.Sprintf(`
  service       %[1]s
  platform key  %[2]s        (product "demo")
  admin key     %[9]s
  engine        %[3]s        (user %[4]s)
  engine key    %[5]s

  Try:
    curl -s %[1]s/engines/%[4]s -H 'X-Platform-Key: %[2]s'
%[13]s    curl -s -X POST %[1]s/engines/provision -H 'X-Platform-Key: %[2]s' -H 'Content-Type: application/json' -d '{"user_id": "demo-user-002"}'
    curl -s -X POST %[1]s/engines/%[4]s/rotate-key -H 'X-Platform-Key: %[2]s'
    curl -s -X POST %[1]s/engines/%[4]s/stop -H 'X-Platform-Key: %[2]s'

  Nomad UI      %[6]s/ui/jobs%[11]s
  Consul UI     %[7]s/ui%[11]s
  Vault UI      %[8]s/ui     (%[12]s; only HashiCorp's own builds have its pages)

  . %[10]s sets ORCH_URL, the keys, and the agents' addresses, tokens and
  certificates in a shell; then orch engine list, orch status and orch audit tail -f
  work there, and so do nomad, consul and vault if they are installed.
  Ctrl-C ends everything.
`, sys.URL, sys.Product.PlatformAPIKey, e.URL, demoUser, e.APIKey,
		ui.nomad, ui.consul, ui.vault, sys.AdminKey, filepath.Join(stateDir, envName), token, tokens, talk)
}

// talk returns calls of the engine itself, which only the reference engine has; other
// images have paths of their own. image is ORCH_ENGINE_IMAGE; empty: the reference engine.
func talk(e *client.Engine, image string) string {
	if image != "" && !strings.Contains(image, "reference-engine") {
		return ""
	}
	return fmt.Sprintf(`    curl -s %[1]s/execute -H 'X-Engine-Key: %[2]s' -H 'Content-Type: application/json' -d '{"input": "the sky is blue"}'
    curl -s %[1]s/memory/export -H 'X-Engine-Key: %[2]s'
`, e.URL, e.APIKey)
}
