//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/pause"
)

const (
	rawExec     = "raw_exec"
	inDock      = "docker"
	dockerImage = "orch/reference-engine:1"
	// cpuMHz and memoryMB are the resources of every engine, with the service or without:
	// the service's default CPU, and so little memory that many fit on a small machine.
	cpuMHz, memoryMB = 100, 64
	mostEngines      = 600             // determines the resources of the node in Nomad
	patience         = 3 * time.Minute // limit for conditions: new volumes take 10 s, many boots minutes
)

// rig is a stack of agents, and the service processes of the current part.
type rig struct {
	stack    *devstack.Stack
	nodes    int
	dir      string // below the stack's directory, and removed with it
	agents   devstack.Binaries
	drivers  []string // that can be measured on this machine
	adminKey string   // of all services
	services []*service
	restMs   float64 // CPU time of the service per second at rest, in ms; 0: not measured
}

// startStack starts the agents, finds docker, and copies the executables, because they may
// be rebuilt during the run.
func (r *rig) startStack(ctx context.Context, rep *report, cfg devstack.Config) {
	r.adminKey, r.drivers = rand.Text(), []string{rawExec}
	cfg.Progress = func(line string) { rep.progress("%s", line) }
	if socket := os.Getenv("DOCKER_HOST"); r.nodes > 1 || !strings.HasPrefix(socket, "unix:///") {
		rep.note("Docker was not measured: DOCKER_HOST is not a socket, or this is the scale curve.")
	} else {
		command(ctx, "cmd/reference-engine/build-image.sh", dockerImage)
		cfg.DockerSocket, r.drivers = socket, append(r.drivers, inDock)
	}
	r.agents = must(devstack.Tools(ctx, devstack.ToolOptions{Progress: cfg.Progress, Pinned: r.nodes > 1}))
	cfg.Binaries = r.agents
	r.stack = must(devstack.Start(ctx, cfg))
	r.dir = filepath.Join(r.stack.Dir, "bench")
	check(os.MkdirAll(r.dir, 0o755))
	command(ctx, "cp", "bin/orch", "bin/orch-brain", "bin/reference-engine", r.dir)
	rep.head = strings.ReplaceAll(r.script(ctx, "describe"), "\n", ", ")
}

// command runs a command, waits for its end, and returns its output.
func command(ctx context.Context, name string, args ...string) string {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = childAttributes
	out, err := cmd.CombinedOutput()
	if err != nil {
		check(fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out))
	}
	return strings.TrimSpace(string(out))
}

// childAttributes are the attributes of child processes. A Ctrl-C in the terminal does not
// reach them, because they are ended in order; they end if this process is killed.
var childAttributes = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}

// script runs a command of script.sh.
func (r *rig) script(ctx context.Context, args ...string) string {
	env := []string{"NOMAD=" + r.agents.Nomad, "CONSUL=" + r.agents.Consul, "VAULT=" + r.agents.Vault, "ORCH=" + r.dir + "/orch",
		"NOMAD_ADDR=" + r.stack.NomadAddr, "CONSUL_HTTP_ADDR=" + r.stack.ConsulAddr, "bench/script.sh"}
	return command(ctx, "env", append(env, args...)...)
}

// endServices ends the service processes, and kills those that run a minute longer.
func (r *rig) endServices() {
	var errs []error
	for _, s := range r.services {
		_ = s.cmd.Process.Signal(syscall.SIGTERM) // Wait returns its error
		kill := time.AfterFunc(time.Minute, func() { _ = s.cmd.Process.Kill() })
		err := s.cmd.Wait()
		if kill.Stop(); err != nil {
			errs = append(errs, fmt.Errorf("the service process %s ended with %w", s.name, err))
		}
	}
	r.services = nil
	check(errors.Join(errs...))
}

// until repeats condition at an interval until it returns nil, for patience at most.
func until(ctx context.Context, every time.Duration, condition func() error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for err := condition(); err != nil; err = condition() {
		if !pause.For(ctx, every) {
			check(errors.Join(ctx.Err(), err))
		}
	}
}

// each calls do for all, at most atOnce concurrently.
func each[T any](ctx context.Context, all []T, atOnce int, do func(context.Context, T)) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, one := range all {
		group.Go(func() error { return caught(func() { do(ctx, one) }) })
	}
	check(group.Wait())
}

// usersOf returns n user ids.
func usersOf(name string, n int) (users []string) {
	for i := range n {
		users = append(users, fmt.Sprintf("%s-%d", name, i))
	}
	return users
}

// service is a process of `orch server`, with the client of one of its products.
type service struct {
	*client.Client // with the product's key
	productID      string
	admin          *client.Client
	name           string
	vars           []string // its ORCH_ variables
	cmd            *exec.Cmd
	logFile        string
	read           int64 // how many bytes of the log have been read
}

// start starts a service process, which endServices ends, and returns when it is ready and
// has a product. volumes is the size of its volume pool, and more are further ORCH_
// variables.
func (r *rig) start(ctx context.Context, name, driver string, volumes int, more ...string) *service {
	s := &service{name: name, logFile: filepath.Join(r.dir, name+".log")}
	snapshots := filepath.Join(r.dir, name+".snapshots")
	check(os.MkdirAll(snapshots, 0o700))
	image := map[string]string{rawExec: "reference-engine", inDock: dockerImage}[driver]
	s.vars = append([]string{
		"ORCH_ADDR=127.0.0.1:0", "ORCH_OPS_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_ADMIN_KEY=" + r.adminKey, "ORCH_LOG_JSON=true", "ORCH_ALLOW_OPEN_NOMAD=true",
		"ORCH_ENGINE_DRIVER=" + driver, "ORCH_ENGINE_IMAGE=" + image, "ORCH_ENGINE_BIN_DIR=" + r.dir,
		fmt.Sprint("ORCH_ENGINE_CPU_MHZ=", cpuMHz), fmt.Sprint("ORCH_ENGINE_MEMORY_MB=", memoryMB),
		"ORCH_CONSUL_PREFIX=" + name + "/", fmt.Sprint("ORCH_VOLUME_POOL=", volumes),
		"ORCH_DATABASE_URL=sqlite://" + filepath.Join(r.dir, name+".db"), "ORCH_SNAPSHOT_URL=file://" + snapshots,
	}, more...)
	mount := strings.ReplaceAll(name, "_", "-")
	token := must(r.stack.Mount(ctx, mount))
	log := must(os.Create(s.logFile))
	defer func() { _ = log.Close() }() // the process has its own descriptor
	s.cmd = exec.Command(filepath.Join(r.dir, "orch"), "server")
	s.cmd.SysProcAttr, s.cmd.Stderr = childAttributes, log
	s.cmd.Env = append(s.vars, "PATH="+os.Getenv("PATH"), "NOMAD_ADDR="+r.stack.NomadAddr, "CONSUL_HTTP_ADDR="+r.stack.ConsulAddr,
		"VAULT_ADDR="+r.stack.VaultAddr, "VAULT_TOKEN="+token, "ORCH_VAULT_MOUNT="+mount)
	check(s.cmd.Start())
	r.services = append(r.services, s)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, usual.perSecond // calls must not wait for connections
	url := fmt.Sprint("http://", s.logged(ctx, "listening")["addr"])
	s.admin = &client.Client{BaseURL: url, AdminKey: r.adminKey, HTTP: &http.Client{Transport: transport}}
	until(ctx, 20*time.Millisecond, func() error { return s.admin.Ready(ctx) })
	return s.product(ctx, "bench", nil)
}

// product registers a product and returns the service with its client.
func (s *service) product(ctx context.Context, slug string, policy *client.Policy) *service {
	registered, other := must(s.admin.RegisterProduct(ctx, slug, slug, policy)), *s
	other.productID = registered.ProductID
	other.Client = &client.Client{BaseURL: s.admin.BaseURL, PlatformKey: registered.PlatformAPIKey, HTTP: s.admin.HTTP}
	return &other
}

// warmProduct registers a product with a number of warm engines. Only this product gets them,
// because their memory differs from that of other engines.
func (s *service) warmProduct(ctx context.Context, kept int) *service {
	memory := memoryMB + 1
	return s.product(ctx, "warm", &client.Policy{WarmPool: &kept, MemoryMB: &memory})
}

// logged waits for the next line of the log that contains all words, and returns its JSON
// fields.
func (s *service) logged(ctx context.Context, words ...string) (fields map[string]any) {
	f := must(os.Open(s.logFile))
	defer func() { _ = f.Close() }()
	until(ctx, 20*time.Millisecond, func() error {
		must(f.Seek(s.read, io.SeekStart))
		for lines := bufio.NewReader(f); ; {
			line, err := lines.ReadString('\n')
			if err != nil { // the current end of the log
				return fmt.Errorf("the service has not logged %q: %w", words, err)
			}
			s.read += int64(len(line))
			if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
				return json.Unmarshal([]byte(line), &fields)
			}
		}
	})
	return fields
}

// timed makes a call that is an operation on a user's engine. It records how long the caller
// waits, and the duration of each step from the service's log.
func (s *service) timed(ctx context.Context, rec recorder, series string, call func(context.Context, string), user string) {
	id, w := strings.ToLower(rand.Text()), startWatch()
	call(client.WithRequestID(ctx, id), user)
	w.step("all")
	w.steps = stepsOf(s.logged(ctx, `"operation done"`, id))
	rec.operation(series, w, true)
}

// stepsOf returns the values of the fields <step>_ms by step.
func stepsOf(fields map[string]any) map[string]float64 {
	steps := map[string]float64{}
	for name, value := range fields {
		step, isStep := strings.CutSuffix(name, "_ms")
		if ms, isNumber := value.(float64); isStep && isNumber {
			steps[step] = ms
		}
	}
	return steps
}

// The operations on a user's engine.

func (s *service) provision(ctx context.Context, user string)   { must(s.Provision(ctx, user, "")) }
func (s *service) stopEngine(ctx context.Context, user string)  { must(s.Stop(ctx, user)) }
func (s *service) startEngine(ctx context.Context, user string) { must(s.Start(ctx, user)) }
func (s *service) rotateKey(ctx context.Context, user string)   { must(s.RotateKey(ctx, user)) }
func (s *service) destroy(ctx context.Context, user string)     { must(s.Destroy(ctx, user)) }

func (s *service) wake(ctx context.Context, user string) {
	if a := must(s.Admit(ctx, user, client.AdmitOptions{AutoWake: true})); !a.Admitted {
		check(errors.New("not admitted: " + a.Reason))
	}
}

// waiting waits until there are at least volumes ready volumes and warm warm engines.
func (s *service) waiting(ctx context.Context, volumes, warm int) {
	until(ctx, 20*time.Millisecond, func() error {
		status, err := s.admin.Whole(ctx)
		if err == nil && (status.PooledVolumes < volumes || status.WarmEngines < warm) {
			err = fmt.Errorf("%d of %d volumes and %d of %d warm engines are ready", status.PooledVolumes, volumes, status.WarmEngines, warm)
		}
		return err
	})
}
