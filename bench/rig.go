package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/registry"
)

// The drivers of engines.
const (
	rawExec = "raw_exec"
	inDock  = "docker"
)

// resources of every engine, by hand or not: the service's default CPU, and
// little enough memory for a fleet on a small machine.
var resources = registry.Resources{CPUMHz: 100, MemoryMB: 64}

// mostEngines is how many engines Nomad is told that its node has room for. A
// burst is more than the cores of a small machine are by Nomad's count, and none
// of the drivers keeps an engine from what is free.
const mostEngines = 600

// rig is what is measured on: one stack of agents, and the service processes of
// the part that runs.
type rig struct {
	stack *devstack.Stack
	dir   string // below the stack's, removed with it
	nomad string // Nomad's command line

	docker   *docker
	noDocker error // why docker is nil

	adminKey string // of all services
	services []*service
}

// startRig starts the agents. On an error nothing is left running.
func startRig(ctx context.Context, progress func(string)) (r *rig, err error) {
	r = &rig{adminKey: rand.Text()}
	if r.docker, r.noDocker = findDocker(ctx); r.docker != nil {
		progress("building the engine's image")
		if err := r.docker.buildImage(ctx); err != nil {
			return nil, err
		}
	}
	cfg := devstack.Config{Progress: progress, CPUMHz: mostEngines * resources.CPUMHz, MemoryMB: mostEngines * resources.MemoryMB}
	if cfg.Binaries, err = devstack.Tools(ctx, devstack.ToolOptions{Progress: progress}); err != nil {
		return nil, err
	}
	r.nomad = cfg.Binaries.Nomad
	if r.docker != nil {
		cfg.DockerSocket = r.docker.socket
	}
	if r.stack, err = devstack.Start(ctx, cfg); err != nil {
		return nil, err
	}
	r.dir = filepath.Join(r.stack.Dir, "bench")
	// Copies: somebody may build anew while this runs.
	for _, name := range []string{"orch", "reference-engine"} {
		if err := copyExecutable(filepath.Join("bin", name), filepath.Join(r.dir, name)); err != nil {
			return nil, errors.Join(fmt.Errorf("%w (run `make build` first, and this at the root of the checkout)", err), r.close())
		}
	}
	return r, nil
}

// drivers are those that can be measured here.
func (r *rig) drivers() []string {
	if r.docker == nil {
		return []string{rawExec}
	}
	return []string{rawExec, inDock}
}

// vars are the ORCH_ variables of a service; name tells it from the others.
func (r *rig) vars(name, driver string, volumes int, more map[string]string) map[string]string {
	all := map[string]string{
		"ORCH_ADDR": "127.0.0.1:0", "ORCH_ADMIN_KEY": r.adminKey, "ORCH_LOG_JSON": "true",
		"ORCH_ENGINE_DRIVER": driver, "ORCH_ENGINE_IMAGE": "reference-engine", "ORCH_ENGINE_BIN_DIR": r.dir,
		"ORCH_ENGINE_CPU_MHZ": strconv.Itoa(resources.CPUMHz), "ORCH_ENGINE_MEMORY_MB": strconv.Itoa(resources.MemoryMB),
		"ORCH_CONSUL_PREFIX": "bench-" + name + "/", "ORCH_VOLUME_POOL": strconv.Itoa(volumes),
		"ORCH_DATABASE_URL": "sqlite://" + filepath.Join(r.dir, name+".db"),
	}
	if driver == inDock {
		all["ORCH_ENGINE_IMAGE"] = dockerImage
	}
	maps.Copy(all, more)
	return all
}

// start starts a service, which endServices ends.
func (r *rig) start(ctx context.Context, vars map[string]string) (*service, error) {
	s, err := startService(ctx, filepath.Join(r.dir, "orch"), r.stack, vars)
	if err == nil {
		r.services = append(r.services, s)
	}
	return s, err
}

// end ends one service.
func (r *rig) end(s *service) error {
	r.services = slices.DeleteFunc(r.services, func(other *service) bool { return other == s })
	return s.stop()
}

// tails are the ends of the services' logs.
func (r *rig) tails() (text string) {
	for _, s := range r.services {
		text += "\nthe end of a service's log:\n" + s.log.tail()
	}
	return text
}

func (r *rig) endServices() error {
	var errs []error
	for _, s := range slices.Clone(r.services) {
		errs = append(errs, r.end(s))
	}
	return errors.Join(errs...)
}

// close ends the services, then the agents with all engines and directories.
func (r *rig) close() error {
	return errors.Join(r.endServices(), r.stack.Stop())
}

func copyExecutable(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
