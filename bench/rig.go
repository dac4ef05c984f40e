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
	"strconv"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/registry"
)

// warmUps are rounds that are not counted: caches fill.
const warmUps = 2

// resources of every engine, by hand or not: the service's default CPU, and
// little enough memory for a fleet on a small machine.
var resources = registry.Resources{CPUMHz: 100, MemoryMB: 64}

// rig is what is measured on: one stack of agents, service processes, and
// engines prepared to be run by hand.
type rig struct {
	stack *devstack.Stack
	dir   string // below the stack's, removed with it

	raw    *service // raw_exec; a new key restarts the engine
	reload *service // raw_exec; a new key is a signal
	inDock *service // docker; nil without an engine

	rawFloor, dockFloor *floor

	docker   *docker
	noDocker error // why docker is nil

	adminKey string // of all services
}

// startRig starts everything. On an error nothing is left running.
func startRig(ctx context.Context, rounds int, progress func(string)) (r *rig, err error) {
	r = &rig{}
	if r.docker, r.noDocker = findDocker(ctx); r.docker != nil {
		progress("building the engine's image")
		if err := r.docker.buildImage(ctx); err != nil {
			return nil, err
		}
	}
	cfg := devstack.Config{Progress: progress}
	if r.docker != nil {
		cfg.DockerSocket = r.docker.socket
	}
	if r.stack, err = devstack.Start(ctx, cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	r.dir = filepath.Join(r.stack.Dir, "bench")
	// Copies: somebody may build anew while this runs.
	for _, name := range []string{"orch", "reference-engine"} {
		if err := copyExecutable(filepath.Join("bin", name), filepath.Join(r.dir, name)); err != nil {
			return nil, fmt.Errorf("%w (run `make build` first, and this at the root of the checkout)", err)
		}
	}
	progress("starting the services and filling their pools")
	return r, r.startServices(ctx, warmUps+rounds)
}

func (r *rig) startServices(ctx context.Context, rounds int) (err error) {
	r.adminKey = rand.Text()
	vars := func(name string, pool int, more map[string]string) map[string]string {
		all := map[string]string{
			"ORCH_ADDR": "127.0.0.1:0", "ORCH_ADMIN_KEY": r.adminKey, "ORCH_LOG_JSON": "true",
			"ORCH_ENGINE_DRIVER": "raw_exec", "ORCH_ENGINE_IMAGE": "reference-engine", "ORCH_ENGINE_BIN_DIR": r.dir,
			"ORCH_ENGINE_CPU_MHZ": strconv.Itoa(resources.CPUMHz), "ORCH_ENGINE_MEMORY_MB": strconv.Itoa(resources.MemoryMB),
			"ORCH_CONSUL_PREFIX": "bench-" + name + "/", "ORCH_VOLUME_POOL": strconv.Itoa(pool),
			"ORCH_DATABASE_URL": "sqlite://" + filepath.Join(r.dir, name+".db"),
		}
		maps.Copy(all, more)
		return all
	}
	orch := filepath.Join(r.dir, "orch")
	raw := vars("raw", fleetSize, nil)
	if r.raw, err = startService(ctx, orch, r.stack, raw); err != nil {
		return err
	}
	if r.reload, err = startService(ctx, orch, r.stack, vars("reload", 1, map[string]string{"ORCH_ENGINE_KEY_RELOAD": "signal"})); err != nil {
		return err
	}
	if r.rawFloor, err = newFloor(ctx, r.stack.NomadAddr, raw, rounds); err != nil {
		return err
	}
	if r.docker != nil {
		dock := vars("docker", 2, map[string]string{"ORCH_ENGINE_DRIVER": "docker", "ORCH_ENGINE_IMAGE": dockerImage})
		if r.inDock, err = startService(ctx, orch, r.stack, dock); err != nil {
			return err
		}
		if r.dockFloor, err = newFloor(ctx, r.stack.NomadAddr, dock, rounds); err != nil {
			return err
		}
		r.dockFloor.started = r.docker.taskStarted
	}
	if err := r.reload.poolFull(ctx); err != nil {
		return err
	}
	_, err = r.reload.Provision(ctx, reloadUser, "")
	return err
}

// reloadUser has the engine that reloads its key.
const reloadUser = "reload"

// services are those that run.
func (r *rig) services() []*service {
	var list []*service
	for _, s := range []*service{r.raw, r.reload, r.inDock} {
		if s != nil {
			list = append(list, s)
		}
	}
	return list
}

// close ends the services, then the agents with all engines and folders.
func (r *rig) close() error {
	var errs []error
	for _, s := range r.services() {
		errs = append(errs, s.stop())
	}
	return errors.Join(append(errs, r.stack.Stop())...)
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
