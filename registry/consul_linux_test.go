package registry

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/devstack"
)

// management is a token with all permissions; a client without a token has nearly as many.
const management = "8a1e3b0c-9d52-4f0e-8d6b-0c1a2b3c4d5e"

// agent is the Consul agent of this package's tests. The first test that needs it starts
// it.
var agent consulAgent

func TestMain(m *testing.M) {
	code := m.Run()
	agent.stop()
	if fuzzing := flag.Lookup("test.fuzz").Value.String() != ""; code == 0 && !fuzzing {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

type consulAgent struct {
	once   sync.Once
	err    error
	dir    string
	cmd    *exec.Cmd
	addr   string
	client *consul.Client
	plain  *consul.Client // without RawAnswers
	idle   func()
}

// consulClient returns a client of a real Consul agent.
func consulClient(t testing.TB) *consul.Client {
	t.Helper()
	agent.once.Do(func() { agent.err = agent.start() })
	if agent.err != nil {
		t.Fatal(agent.err)
	}
	return agent.client
}

// start runs an agent that ends with this process, even after a crash.
func (a *consulAgent) start() error {
	binaries, err := devstack.Tools(context.Background(), devstack.ToolOptions{})
	if err != nil {
		return err
	}
	if a.dir, err = os.MkdirTemp("", "orch-registry-"); err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`
ports { http = %d, server = %d, serf_lan = %d, serf_wan = -1, dns = -1, grpc = -1, grpc_tls = -1 }
bind_addr            = "127.0.0.1"
limits               { http_max_conns_per_client = 2000 }
disable_update_check = true
acl { enabled = true, default_policy = "allow", tokens { initial_management = "%s" } }
`, ports[0], ports[1], ports[2], management)
	file := filepath.Join(a.dir, "consul.hcl")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	a.cmd = exec.Command(binaries.Consul, "agent", "-dev", "-log-level=error", "-config-file="+file)
	a.cmd.Env = []string{"HOME=" + a.dir, "GOMAXPROCS=2"}
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		return err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64, MaxConnsPerHost: 64}
	a.idle = transport.CloseIdleConnections
	a.addr = fmt.Sprintf("127.0.0.1:%d", ports[0])
	cfg := &consul.Config{Address: a.addr, Transport: transport}
	if a.client, err = consul.NewClient(cfg); err != nil {
		return err
	}
	if a.plain, err = consul.NewClient(&consul.Config{Address: cfg.Address, Transport: transport}); err != nil {
		return err
	}
	cfg.HttpClient.Transport = RawAnswers(transport)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return await(ctx, func() error {
		_, err := a.client.KV().Put(&consul.KVPair{Key: "ready"}, (&consul.WriteOptions{}).WithContext(ctx))
		return err
	})
}

func (a *consulAgent) stop() {
	if a.idle != nil {
		a.idle()
	}
	if a.cmd != nil && a.cmd.Process != nil {
		_ = a.cmd.Process.Kill() // all its data is in memory
		_ = a.cmd.Wait()
	}
	if a.dir != "" {
		_ = os.RemoveAll(a.dir)
	}
}

func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// await polls until check returns nil.
func await(ctx context.Context, check func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := await(ctx, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// prefix returns the prefix of a separate registry for a test.
func prefix(t *testing.T) string { return "t/" + newName() + "/" }

// replica is a store of a replica with a session.
type replica struct {
	*Store
	self *Replica
	stop func()
}

// join starts a replica on a prefix; the first on a prefix leads.
func join(t *testing.T, prefix string) *replica {
	t.Helper()
	s := New(consulClient(t), prefix)
	r := &replica{Store: s, self: s.Join(hclog.NewNullLogger())}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.self.Run(ctx) }()
	r.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(r.stop)
	select {
	case <-r.self.Joined():
	case <-time.After(30 * time.Second):
		t.Fatal("no session after 30 s")
	}
	// The first replica creates the deployment's record, and all follow it.
	d, err := s.Deployment(t.Context())
	if err == nil && d.Index == 0 {
		if err = s.PutDeployment(t.Context(), &Deployment{ID: newName(), State: RegistryOK}); errors.Is(err, ErrConflict) {
			err = nil
		}
		if err == nil {
			d, err = s.Deployment(t.Context())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Follow(d)
	return r
}

// lead is join for a test that needs to be the leader.
func lead(t *testing.T, prefix string) *replica {
	t.Helper()
	r := join(t, prefix)
	eventually(t, "the only replica leads", func() error {
		if !r.self.Leader() {
			return errors.New("it does not")
		}
		return nil
	})
	return r
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// put writes a key without the registry's code.
func (r *replica) put(t *testing.T, key string, value []byte) {
	t.Helper()
	if _, err := r.client.KV().Put(&consul.KVPair{Key: r.prefix + key, Value: value}, nil); err != nil {
		t.Fatal(err)
	}
}

// keys lists the keys below the store's prefix, without the replica's own keys and the
// change counters.
func (r *replica) keys(t *testing.T) map[string]string {
	t.Helper()
	pairs, _, err := r.client.KV().List(r.prefix, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	for _, p := range pairs {
		name := p.Key[len(r.prefix):]
		if p.Session == "" && len(name) > 8 && name[:8] != "changes/" && name != "deployment" {
			keys[name] = string(p.Value)
		}
	}
	return keys
}
