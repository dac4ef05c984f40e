//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/pause"
)

const (
	rawExec = "raw_exec"
	inDock  = "docker"
	// dockerImage is the reference engine's.
	dockerImage = "orch/reference-engine:1"
	// cpuMHz and memoryMB of every engine, with the service or without: the service's
	// default CPU, and little enough memory for many on a small machine.
	cpuMHz, memoryMB = 100, 64
	// mostEngines is how many engines Nomad is told that its node has room for. A burst
	// is more than the cores of a small machine are by Nomad's count, and none of the
	// drivers keeps an engine from what is free.
	mostEngines = 600
	// patience bounds every wait for a condition; a new volume takes 6 to 10 s, and
	// hundreds of engines their time to boot.
	patience = 3 * time.Minute
)

// rig is what is measured on: one stack of agents, and the service processes of the
// part that runs.
type rig struct {
	stack    *devstack.Stack
	nodes    int
	dir      string // below the stack's, removed with it
	agents   devstack.Binaries
	drivers  []string // that can be measured here
	adminKey string   // of all services
	services []*service
	stub     *http.Server // of the scale curve
	restMs   float64      // CPU time of the service in each second at rest, where that was measured
}

// startStack starts the agents, finds docker, and copies the executables, which
// somebody may build anew while this runs.
func (r *rig) startStack(ctx context.Context, rep *report, cfg devstack.Config) {
	r.adminKey, r.drivers = rand.Text(), []string{rawExec}
	cfg.Progress = func(line string) { rep.progress("%s", line) }
	if socket := os.Getenv("DOCKER_HOST"); r.nodes > 1 || !strings.HasPrefix(socket, "unix:///") {
		rep.note("Docker was not measured: DOCKER_HOST names no socket, or this is the scale curve.")
	} else {
		command(ctx, "cmd/reference-engine/build-image.sh", dockerImage)
		cfg.DockerSocket, r.drivers = socket, append(r.drivers, inDock)
	}
	r.agents = must(devstack.Tools(ctx, devstack.ToolOptions{Progress: cfg.Progress, Pinned: r.nodes > 1}))
	cfg.Binaries = r.agents
	r.stack = must(devstack.Start(ctx, cfg))
	r.dir = filepath.Join(r.stack.Dir, "bench")
	check(os.MkdirAll(r.dir, 0o755))
	command(ctx, "cp", "bin/orch", "bin/reference-engine", r.dir)
	rep.head = strings.ReplaceAll(r.script(ctx, "describe"), "\n", ", ")
}

// command runs a command to its end and returns what it printed.
func command(ctx context.Context, name string, args ...string) string {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = childAttributes
	out, err := cmd.CombinedOutput()
	if err != nil {
		check(fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out))
	}
	return strings.TrimSpace(string(out))
}

// childAttributes keep Ctrl-C in the terminal from the child processes, which are
// ended in order, and end them should this process be killed.
var childAttributes = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}

// script runs a command of script.sh.
func (r *rig) script(ctx context.Context, what string, args ...string) string {
	env := []string{"NOMAD=" + r.agents.Nomad, "CONSUL=" + r.agents.Consul, "VAULT=" + r.agents.Vault, "ORCH=" + filepath.Join(r.dir, "orch"),
		"NOMAD_ADDR=" + r.stack.NomadAddr, "CONSUL_HTTP_ADDR=" + r.stack.ConsulAddr, "bench/script.sh", what}
	return command(ctx, "env", append(env, args...)...)
}

// vars are the ORCH_ variables of a service; name tells it from the others.
func (r *rig) vars(name, driver string, volumes int, more map[string]string) map[string]string {
	all := map[string]string{
		"ORCH_ADDR": "127.0.0.1:0", "ORCH_ADMIN_KEY": r.adminKey, "ORCH_LOG_JSON": "true", "ORCH_PPROF_ADDR": "127.0.0.1:0",
		"ORCH_ENGINE_DRIVER": driver, "ORCH_ENGINE_IMAGE": "reference-engine", "ORCH_ENGINE_BIN_DIR": r.dir,
		"ORCH_ENGINE_CPU_MHZ": strconv.Itoa(cpuMHz), "ORCH_ENGINE_MEMORY_MB": strconv.Itoa(memoryMB),
		"ORCH_CONSUL_PREFIX": name + "/", "ORCH_VOLUME_POOL": strconv.Itoa(volumes),
		"ORCH_DATABASE_URL": "sqlite://" + filepath.Join(r.dir, name+".db"),
	}
	if driver == inDock {
		all["ORCH_ENGINE_IMAGE"] = dockerImage
	}
	maps.Copy(all, more)
	return all
}

func environ(vars map[string]string) (list []string) {
	for name, value := range vars {
		list = append(list, name+"="+value)
	}
	return list
}

func (r *rig) endServices() {
	var errs []error
	for _, s := range r.services {
		errs = append(errs, s.stop())
	}
	r.services = nil
	check(errors.Join(errs...))
}

// tails are the ends of the services' logs.
func (r *rig) tails() (text string) {
	for _, s := range r.services {
		text += "\nthe end of a service's log:\n" + s.tail()
	}
	return text
}

// close ends the services, then the agents with all engines and directories.
func (r *rig) close() {
	err := caught(r.endServices)
	if r.stack != nil {
		err = errors.Join(err, r.stack.Stop())
	}
	if r.stub != nil {
		err = errors.Join(err, r.stub.Close())
	}
	check(err)
}

// until waits for a condition: nil, with a deadline.
func until(ctx context.Context, condition func() error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for err := condition(); err != nil; err = condition() {
		if !pause.For(ctx, 20*time.Millisecond) {
			check(errors.Join(ctx.Err(), err))
		}
	}
}

// each calls do for all, so many concurrently.
func each[T any](ctx context.Context, all []T, atOnce int, do func(context.Context, T)) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, one := range all {
		group.Go(func() error { return caught(func() { do(ctx, one) }) })
	}
	check(group.Wait())
}

// usersOf are n user ids.
func usersOf(name string, n int) (users []string) {
	for i := range n {
		users = append(users, fmt.Sprintf("%s-%d", name, i))
	}
	return users
}
