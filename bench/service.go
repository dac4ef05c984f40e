package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/registry"
)

const (
	// readyWithin bounds the start of a service process.
	readyWithin = 60 * time.Second
	// logWithin is how long the log line of an answered operation may take.
	logWithin = 5 * time.Second
	// stopWithin is how long a service process may take to finish what is in
	// flight before it is killed: after a burst the cores are not its own for long.
	stopWithin = time.Minute
	// pollEvery is how often a condition is looked at, outside of any clock.
	pollEvery = 50 * time.Millisecond
)

// service is one process of `orch server` with a product of its own.
type service struct {
	*client.Client // with the product's key

	productID string
	admin     *client.Client

	cmd   *exec.Cmd
	log   *serviceLog
	ended chan struct{} // closed when the process has been waited for
	pool  int           // ready volumes that it keeps
	store *registry.Store
}

// startService starts a service process on a stack and returns when it is ready
// and has a product. vars are all its ORCH_ variables.
func startService(ctx context.Context, bin string, stack *devstack.Stack, vars map[string]string) (_ *service, err error) {
	c, err := consul.NewClient(&consul.Config{Address: stack.ConsulAddr})
	if err != nil {
		return nil, err
	}
	s := &service{log: newServiceLog(), ended: make(chan struct{}), store: registry.New(c, vars["ORCH_CONSUL_PREFIX"])}
	if s.pool, err = strconv.Atoi(vars["ORCH_VOLUME_POOL"]); err != nil {
		return nil, err
	}
	mount := strings.NewReplacer("/", "-", "_", "-").Replace(strings.Trim(cmp.Or(vars["ORCH_CONSUL_PREFIX"], "bench"), "/"))
	token, err := stack.Mount(ctx, "kv-"+mount)
	if err != nil {
		return nil, err
	}
	s.cmd = exec.Command(bin, "server")
	s.cmd.SysProcAttr = childAttributes()
	s.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "NOMAD_ADDR=" + stack.NomadAddr, "CONSUL_HTTP_ADDR=" + stack.ConsulAddr,
		"VAULT_ADDR=" + stack.VaultAddr, "VAULT_TOKEN=" + token, "ORCH_VAULT_MOUNT=kv-" + mount,
	}
	s.cmd.Env = append(s.cmd.Env, environ(vars)...)
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the service: %w", err)
	}
	go func() {
		defer close(s.ended)
		s.log.read(stderr)
		_ = s.cmd.Wait() // the log says why it ended
	}()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("the service: %w; the end of its log:\n%s", err, s.log.tail()), s.stop())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	select {
	case addr := <-s.log.listening:
		s.Client = &client.Client{BaseURL: "http://" + addr, HTTP: &http.Client{Transport: newTransport()}}
	case <-s.ended:
		return nil, errors.New("ended at its start")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := until(ctx, func() error { return s.Ready(ctx) }); err != nil {
		return nil, err
	}
	s.admin = &client.Client{BaseURL: s.BaseURL, AdminKey: vars["ORCH_ADMIN_KEY"], HTTP: s.HTTP}
	registered, err := s.admin.RegisterProduct(ctx, "bench", "Benchmark", nil)
	if err != nil {
		return nil, err
	}
	s.productID, s.PlatformKey = registered.ProductID, registered.PlatformAPIKey
	return s, nil
}

// product registers another product and returns what calls as it.
func (s *service) product(ctx context.Context, slug string, policy *client.Policy) (*client.Client, error) {
	registered, err := s.admin.RegisterProduct(ctx, slug, slug, policy)
	if err != nil {
		return nil, err
	}
	return &client.Client{BaseURL: s.BaseURL, PlatformKey: registered.PlatformAPIKey, HTTP: s.HTTP}, nil
}

func environ(vars map[string]string) []string {
	list := make([]string, 0, len(vars))
	for name, value := range vars {
		list = append(list, name+"="+value)
	}
	return list
}

// stop ends the process, and kills it when it takes too long.
func (s *service) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-s.ended:
		return nil
	case <-time.After(stopWithin):
	}
	_ = s.cmd.Process.Kill()
	<-s.ended
	return fmt.Errorf("a service process did not end within %s of SIGTERM; the end of its log:\n%s", stopWithin, s.log.tail())
}

// timed makes one call that is an operation on an engine, and tells how long its
// caller waited and how long the service says that each step took.
func (s *service) timed(ctx context.Context, call func(context.Context) error) (timing, error) {
	id := strings.ToLower(rand.Text())
	steps := s.log.expect(id)
	began := time.Now()
	err := call(client.WithRequestID(ctx, id))
	t := timing{total: millis(time.Since(began))}
	if err != nil {
		return t, err
	}
	select {
	case t.steps = <-steps:
		return t, nil
	case <-ctx.Done():
		return t, ctx.Err()
	case <-time.After(logWithin):
		return t, fmt.Errorf("the service logged no %q for request %s", doneMessage, id)
	}
}

// poolFull waits until as many volumes are ready as the service keeps.
func (s *service) poolFull(ctx context.Context) error {
	return until(ctx, func() error {
		volumes, _, err := s.store.PooledVolumes(ctx)
		if err != nil {
			return err
		}
		ready := 0
		for _, v := range volumes {
			if v.Ready() {
				ready++
			}
		}
		if ready < s.pool {
			return fmt.Errorf("%d of %d volumes are ready", ready, s.pool)
		}
		return nil
	})
}

// warmFull waits until n warm engines wait for a user.
func (s *service) warmFull(ctx context.Context, n int) error {
	return until(ctx, func() error {
		status, err := s.admin.Whole(ctx)
		if err == nil && status.WarmEngines < n {
			err = fmt.Errorf("%d of %d engines are warm", status.WarmEngines, n)
		}
		return err
	})
}

// rssMiB is the resident memory of the process (VmRSS), in MiB.
func (s *service) rssMiB() (float64, error) {
	return procMiB(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid), "VmRSS:")
}

func newTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, usual.perSecond // the reads must not wait for connections
	return t
}

// patience bounds every wait for a condition; a new volume takes 6 to 10 s, and
// hundreds of engines their time to boot.
const patience = 3 * time.Minute

// until waits for a condition: nil, with a deadline.
func until(ctx context.Context, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		if ended := wait(ctx, pollEvery); ended != nil {
			return errors.Join(ended, err)
		}
	}
}

// wait waits, unless ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
