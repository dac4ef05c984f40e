package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/devstack"
)

// injector carries out a plan.
type injector struct {
	rig   *rig
	watch *watcher
	load  *workload
	log   func(format string, args ...any)

	backup    []byte // a backup of Consul to restore
	strangers *strangers
	burst     *burst

	mu      sync.Mutex
	down    map[devstack.Component]bool // killed by a fault, and not yet restarted
	counts  map[string]int
	trouble []error
}

func newInjector(t *testing.T, r *rig, w *watcher, load *workload) *injector {
	return &injector{rig: r, watch: w, load: load, log: t.Logf, down: map[devstack.Component]bool{}, counts: map[string]int{}}
}

// run carries out the plan, and repairs what the last fault did.
func (in *injector) run(ctx context.Context, faults []fault) {
	began := time.Now()
	for _, f := range faults {
		targets := in.resolve(f)
		in.log("%6.1f s: %s %v", time.Since(began).Seconds(), f, targets)
		in.count(f.how)
		in.failed(f, in.begin(ctx, f.how, targets))
		pause(ctx, f.hold)
		in.failed(f, in.end(ctx, f.how, targets))
		if !pause(ctx, f.rest) {
			return
		}
	}
}

func (in *injector) failed(f fault, err error) {
	if err == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.trouble = append(in.trouble, fmt.Errorf("%s: %w", f, err))
}

func (in *injector) count(how string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.counts[how]++
}

// resolve names the targets that are chosen now.
func (in *injector) resolve(f fault) []string {
	var targets []string
	for _, t := range f.targets {
		if t == leader {
			if t = in.watch.leader(); t == "" {
				t = string(replicaName(0))
			}
		}
		if !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
	}
	return targets
}

func (in *injector) begin(ctx context.Context, how string, targets []string) error {
	var errs []error
	switch how {
	case "restore":
		return in.save(ctx)
	case "part":
		return in.rig.Network.Part(targets...)
	case "crash":
		return in.crash()
	case "purge":
		return in.purge(ctx)
	case "orphan":
		return in.orphan()
	case "strangers":
		return in.settle(targets[0])
	case "reboot":
		return in.reboot(targets[0])
	case "burst":
		return in.gather(ctx, targets[0])
	case "failover":
		return in.failOver()
	case "fill":
		return in.fill()
	}
	for _, t := range targets {
		c := devstack.Component(t)
		switch how {
		case "kill":
			errs = append(errs, in.kill(c))
		case "pause":
			if c == postgres {
				errs = append(errs, in.rig.pg.Pause())
			} else {
				errs = append(errs, in.rig.Pause(c))
			}
		case "cut":
			errs = append(errs, in.rig.Network.Cut(t))
		}
	}
	return errors.Join(errs...)
}

func (in *injector) end(ctx context.Context, how string, targets []string) error {
	var errs []error
	switch how {
	case "restore":
		return in.restore(ctx)
	case "strangers":
		return in.leave()
	case "burst":
		return in.disperse(targets[0])
	case "failover":
		in.rig.spare.Halt()
		return nil
	case "fill":
		return in.empty()
	}
	for _, t := range targets {
		c := devstack.Component(t)
		switch how {
		case "kill":
			errs = append(errs, in.again(ctx, c))
		case "pause":
			if c == postgres {
				errs = append(errs, in.rig.pg.Resume())
			} else {
				errs = append(errs, in.rig.Resume(c))
			}
		case "cut", "part":
			errs = append(errs, in.rig.Network.Heal(t))
		case "reboot":
			errs = append(errs, in.again(ctx, consulOf(c)), in.again(ctx, c))
		}
	}
	return errors.Join(errs...)
}

func (in *injector) kill(c devstack.Component) error {
	in.mark(c, true)
	if c == postgres {
		in.rig.pg.Halt()
		return nil
	}
	killed := in.watch.killing(c)
	if !in.rig.Runs(c) {
		return nil // it ended by itself, and supervise has not noticed yet
	}
	err := in.rig.Kill(c)
	killed()
	return err
}

func (in *injector) again(ctx context.Context, c devstack.Component) error {
	defer in.mark(c, false)
	switch c {
	case postgres:
		return in.rig.pg.Start()
	case devstack.Vault:
		// It is unsealed if possible; heal checks it again.
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		_ = in.rig.Again(ctx, c)
		return nil
	}
	if in.rig.Runs(c) {
		return nil
	}
	return in.rig.Again(ctx, c)
}

func (in *injector) mark(c devstack.Component, down bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.down[c] = down
}

func consulOf(node devstack.Component) devstack.Component {
	return devstack.Component(strings.Replace(string(node), "nomad", "consul", 1))
}

// crash kills the process of one engine.
func (in *injector) crash() error {
	task := in.anyTask()
	if task == nil {
		return nil
	}
	err := syscall.Kill(task.PID, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return nil // it was stopped meanwhile
	}
	in.watch.crashing(strings.TrimPrefix(task.JobID, "engine-"))
	return err
}

// reboot kills everything on a node, including its engines.
func (in *injector) reboot(node string) error {
	c := devstack.Component(node)
	err := errors.Join(in.kill(c), in.kill(consulOf(c)))
	return errors.Join(err, in.rig.KillHost(node))
}

// supervise restarts a replica that ended by itself, and reports it, because that must
// never happen.
func (in *injector) supervise(ctx context.Context) {
	for pause(ctx, 500*time.Millisecond) {
		for name := range in.rig.urls {
			in.mu.Lock()
			if !in.down[name] && !in.rig.Runs(name) {
				in.trouble = append(in.trouble, fmt.Errorf("%s ended by itself; the end of its log:\n%s", name, in.rig.tail(name)))
				if err := in.rig.Again(ctx, name); err != nil {
					in.trouble = append(in.trouble, err)
				}
			}
			in.mu.Unlock()
		}
	}
}

// heal undoes all faults, and waits until everything is usable.
func (in *injector) heal(ctx context.Context) error {
	errs := []error{in.rig.Network.Heal(in.rig.Network.Hosts()...)}
	in.mu.Lock()
	down := maps.Clone(in.down)
	in.mu.Unlock()
	for c, is := range down {
		if is {
			errs = append(errs, in.again(ctx, c))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := in.rig.Await(ctx); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, in.rig.awaitReplicas(ctx))...)
}
