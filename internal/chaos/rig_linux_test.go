package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/testpg"
)

const (
	adminKey   = "admin-key-of-the-fault-suite"
	prefix     = "chaos/"
	deployment = "chaos"
	replicas   = 2
	// diskMiB is the size in MiB of the disk of the audit log's database.
	diskMiB = 512
	// crowded is the product whose callers all call at the same time.
	crowded = "crowded"
	// idle is the idle time of the product whose engines fall asleep.
	idle = 3 * time.Second
)

// postgres is the host and the component of the audit log's database.
const postgres devstack.Component = "postgres"

func replicaName(i int) devstack.Component { return devstack.Component(fmt.Sprintf("orch-%d", i)) }

// rig is everything under test.
type rig struct {
	*devstack.Cluster
	pg       *testpg.Server                // the server that accepts writes
	spare    *testpg.Server                // its standby during a failover
	disk     string                        // that only these two use
	urls     map[devstack.Component]string // of the replicas
	products []*product
	http     *http.Client
}

// product is a tenant of the workload.
type product struct {
	*client.Registered
	limit int // max_engines; 0: none

	mu    sync.Mutex
	users []string // all users that ever called
	seats []seat   // the users that call now
}

// seat is a place for a user. Its calls are counted, because the check of their order takes
// longer with more calls: after callsEach calls, another user takes the seat.
type seat struct{ user, calls int }

const callsEach = 100

func newProduct(made *client.Registered, limit int) *product {
	p := &product{Registered: made, limit: limit}
	for i := range 8 {
		p.seats = append(p.seats, seat{user: i})
		p.users = append(p.users, fmt.Sprintf("%s user %d/8", made.Slug, i))
	}
	return p
}

// pick counts a call for the user in one of the seats. leaves is the previous user of the
// seat, if it made its last call.
func (p *product) pick(i int) (user, leaves string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := &p.seats[i]
	if at.calls++; at.calls > callsEach {
		leaves = p.users[at.user]
		*at = seat{user: len(p.users), calls: 1}
		p.users = append(p.users, fmt.Sprintf("%s user %d/8, after %d", p.Slug, i, len(p.users)))
	}
	return p.users[at.user], leaves
}

// startRig starts the cluster, the database and the replicas, and registers the products.
func startRig(ctx context.Context, t *testing.T) *rig {
	t.Helper()
	orch, engines := build(t)
	began := time.Now()
	names := []string{string(replicaName(0)), string(replicaName(1))}
	cluster, err := devstack.StartCluster(ctx, devstack.Config{
		Dir: *keep, Keep: *keep != "", Locked: os.Getenv("ORCH_TEST_OPEN") != "1", Progress: func(line string) { t.Log(line) },
	}, names...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{Cluster: cluster, urls: map[devstack.Component]string{}, http: newHTTP()}
	t.Cleanup(r.http.CloseIdleConnections)
	r.startDatabase(t)
	database, err := r.database()
	if err != nil {
		t.Fatal(err)
	}
	access, err := cluster.Deployment(ctx, prefix, "orch")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(r.snapshots(), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range replicas {
		name := replicaName(i)
		addr := cluster.Network.Addr(string(name)) + ":8000"
		r.urls[name] = "http://" + addr
		if err := cluster.Run(name, string(name), orch, []string{"server"}, r.settings(addr, engines, database, i, access)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.awaitReplicas(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("everything is up after %s", time.Since(began).Round(time.Second))
	r.register(ctx, t)
	return r
}

func (r *rig) startDatabase(t *testing.T) {
	t.Helper()
	host := string(postgres)
	addr, err := r.Network.AddHost(host, 61)
	if err != nil {
		t.Fatal(err)
	}
	if r.disk, err = os.MkdirTemp("", "orch-chaos-disk-"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", r.disk, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", diskMiB)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(syscall.Unmount(r.disk, syscall.MNT_DETACH), os.Remove(r.disk)); err != nil {
			t.Error(err)
		}
	})
	outside, set := os.LookupEnv("TMPDIR")
	_ = os.Setenv("TMPDIR", r.disk) // servers create their directories there
	defer func() {
		_ = os.Unsetenv("TMPDIR")
		if set {
			_ = os.Setenv("TMPDIR", outside)
		}
	}()
	r.pg, err = testpg.NewOn(addr, func(start func() error) error { return r.Network.On(host, start) })
	t.Cleanup(func() { r.pg.Stop() })
	if err != nil {
		t.Fatal(err)
	}
	r.spare, err = r.pg.Spare()
	t.Cleanup(func() { r.spare.Stop() })
	if err != nil {
		t.Fatal(err)
	}
}

// database creates an empty database, and returns a URL that names both servers.
func (r *rig) database() (string, error) {
	address, err := r.pg.Database()
	if err != nil {
		return "", err
	}
	both, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	spare, err := url.Parse(r.spare.URL(""))
	if err != nil {
		return "", err
	}
	both.Host += "," + spare.Host
	return both.String(), nil
}

// settings returns the environment of one replica, which has its own Consul agent and uses
// one of the Nomad servers.
func (r *rig) settings(addr, engines, database string, i int, access devstack.Access) []string {
	scheme, _, _ := strings.Cut(access.ConsulAddr, "://")
	access.NomadAddr, access.ConsulAddr = r.NomadAddrs[i], scheme+"://127.0.0.1:8500"
	return append(access.Environ(),
		"ORCH_ADDR="+addr, "ORCH_DRAIN_DELAY_S=0", "ORCH_ALLOW_HTTP=true", "ORCH_ADMIN_KEY="+adminKey, "ORCH_DATABASE_URL="+database, "ORCH_CONSUL_PREFIX="+prefix,
		"ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine", "ORCH_ENGINE_BIN_DIR="+engines, "ORCH_ENGINE_LOGS=driver",
		"ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32", "ORCH_VOLUME_POOL=4", "ORCH_WARM_POOL=2", "ORCH_LOG_LEVEL=debug",
		"ORCH_BOOT_TIMEOUT_S=20", "ORCH_HEALTH_CHECK_INTERVAL_S=5", "ORCH_HEALTH_CHECK_TIMEOUT_S=2",
		"ORCH_RESTART_BACKOFF_BASE_S=1", "ORCH_RESTART_BACKOFF_MAX_S=5", "ORCH_RESTART_MAX_ATTEMPTS=50",
		"ORCH_RECONCILE_INTERVAL_S=5", "ORCH_ORPHAN_GRACE_S=10", "ORCH_IDLE_TIMEOUT_S=0",
		"ORCH_NOMAD_NAMESPACE="+r.Namespace, "ORCH_ALLOW_OPEN_NOMAD="+strconv.FormatBool(access.Open()),
		"ORCH_SNAPSHOT_URL="+(&url.URL{Scheme: "file", Path: r.snapshots()}).String(),
	)
}

// snapshots is the directory of the snapshot store. All hosts of the cluster see it.
func (r *rig) snapshots() string { return filepath.Join(r.Dir, "snapshots") }

// newHTTP returns a client that notices a dead replica early enough to call the other one.
func newHTTP() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = dialer(2 * time.Second)
	t.MaxIdleConnsPerHost = 32
	return &http.Client{Transport: tagged{t}}
}

// awaitReplicas waits until every replica is ready.
func (r *rig) awaitReplicas(ctx context.Context) error {
	for name, url := range r.urls {
		err := eventually(ctx, 60*time.Second, func() error {
			if !r.Runs(name) {
				return fmt.Errorf("%s ended:\n%s", name, r.tail(name))
			}
			limited, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			return (&client.Client{BaseURL: url, HTTP: r.http}).Do(limited, http.MethodGet, "/health", nil, nil)
		})
		if err != nil {
			return fmt.Errorf("%s is not healthy: %w", name, err)
		}
	}
	return nil
}

// register registers the products: one without limits, one that is often full, one whose
// engines fall asleep, and one that may have no engines.
func (r *rig) register(ctx context.Context, t *testing.T) {
	t.Helper()
	c := &client.Client{BaseURL: r.urls[replicaName(0)], AdminKey: adminKey, HTTP: r.http}
	for _, p := range []struct {
		slug   string
		limit  int
		policy client.Policy
	}{
		{"plenty", 0, client.Policy{}},
		{"scarce", 4, client.Policy{MaxEngines: new(4)}},
		{"sleepy", 0, client.Policy{IdleTimeoutS: new(int(idle.Seconds()))}},
		{crowded, 0, client.Policy{MaxEngines: new(0)}},
	} {
		made, err := c.RegisterProduct(ctx, p.slug, "Product "+p.slug, &p.policy)
		if err != nil {
			t.Fatal(err)
		}
		r.products = append(r.products, newProduct(made, p.limit))
	}
}

// tail returns the end of a component's log.
func (r *rig) tail(c devstack.Component) string {
	text, err := os.ReadFile(r.LogFile(c))
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}

// scream returns an error if a replica's log contains what it must never contain.
func (r *rig) scream(c devstack.Component) error {
	text, err := os.ReadFile(r.LogFile(c))
	if err != nil {
		return err
	}
	for _, bad := range []string{"panic:", "DATA RACE", "fatal error:"} {
		if _, after, found := strings.Cut(string(text), bad); found {
			return fmt.Errorf("%s: %s%s", c, bad, after[:min(len(after), 4000)])
		}
	}
	return nil
}

// eventually calls check until it returns nil, for a limited time.
func eventually(ctx context.Context, within time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return errors.Join(fmt.Errorf("not within %s", within), err)
		}
	}
}

// pause waits, and reports whether ctx is still active.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
