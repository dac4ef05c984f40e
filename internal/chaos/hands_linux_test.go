package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/devstack"
)

// Faults that people and other processes cause.

// anyTask returns the process of some engine; nil: there is none.
func (in *injector) anyTask() *devstack.Task {
	tasks := slices.DeleteFunc(in.rig.Tasks(), func(t devstack.Task) bool { return !strings.HasPrefix(t.JobID, jobPrefix) })
	if len(tasks) == 0 {
		return nil
	}
	return &tasks[rand.IntN(len(tasks))]
}

// purge removes the job of one engine from Nomad, as with its UI.
func (in *injector) purge(ctx context.Context) error {
	task := in.anyTask()
	if task == nil {
		return nil
	}
	return eventually(ctx, savedWithin, func() error {
		var errs []error
		for _, addr := range in.rig.NomadAddrs {
			cfg := in.rig.NomadConfig()
			cfg.Address, cfg.HttpClient = addr, &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: in.rig.TLS()}}
			c, err := nomad.NewClient(cfg)
			if err == nil {
				if _, _, err = c.Jobs().Deregister(task.JobID, true, (&nomad.WriteOptions{}).WithContext(ctx)); err == nil {
					return nil
				}
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// orphan kills the executor of one engine's process, which keeps running without it.
func (in *injector) orphan() error {
	task := in.anyTask()
	if task == nil {
		return nil
	}
	executor := task.Executor()
	if executor == 0 {
		return nil // it was stopped meanwhile
	}
	err := syscall.Kill(executor, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	in.watch.crashing(strings.TrimPrefix(task.JobID, jobPrefix))
	return err
}

// The dynamic ports of a node (devstack.StartCluster), and how many of them strangers use.
const (
	lowPort, ports = 20000, 1000
	strangerPorts  = 400
	proofPath      = "/.orch/key-proof"
)

// strangers are foreign processes on ports of a node that Nomad regards as free. They
// return 200 to every request of the service.
type strangers struct {
	servers []*http.Server
	serving sync.WaitGroup

	mu   sync.Mutex
	told map[string]bool // keys that they received from the service
}

func (s *strangers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case proofPath:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.told[r.Header.Get("X-Engine-Key")] = true
	case "/health":
		_, _ = io.WriteString(w, `{"status": "ok"}`)
	default: // a caller with an outdated address
		w.WriteHeader(http.StatusMisdirectedRequest)
	}
}

// settle listens on ports of a node.
func (in *injector) settle(node string) error {
	if in.strangers == nil {
		in.strangers = &strangers{told: map[string]bool{}}
	}
	s := in.strangers
	var listeners []net.Listener
	err := in.rig.Network.On(node, func() error {
		for _, n := range rand.Perm(ports)[:strangerPorts] {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", lowPort+n))
			if errors.Is(err, syscall.EADDRINUSE) {
				continue // an engine has it
			}
			if err != nil {
				return err
			}
			listeners = append(listeners, l)
		}
		return nil
	})
	for _, l := range listeners {
		srv := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second}
		s.servers = append(s.servers, srv)
		s.serving.Go(func() { _ = srv.Serve(l) })
	}
	return err
}

// leave releases the ports, and returns an error if the strangers received a key.
func (in *injector) leave() error {
	s := in.strangers
	if s == nil {
		return nil
	}
	for _, srv := range s.servers {
		_ = srv.Close()
	}
	s.serving.Wait()
	s.servers = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range in.load.history.all() {
		if c.answer.key != "" && s.told[c.answer.key] {
			return fmt.Errorf("a stranger received the key of %s", c.user)
		}
	}
	return nil
}
