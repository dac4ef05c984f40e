package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/septemberai/orch/internal/devstack"
)

const (
	// curveNodes is how many Nomad clients there are: a node gets slower with its
	// allocations, but the agents of each take about a hundredth of a core of this
	// machine with nothing to do.
	curveNodes = 20
	// curveFirstPort and curveLastPort are the ports of all engines, shared out
	// among the nodes.
	curveFirstPort, curveLastPort = 14000, 31999
	// curvePool is how many ready volumes each node keeps: a new one takes 6 to
	// 10 s, and each batch of them has Nomad evaluate all jobs on its node. A quarter
	// of the engines that a node has in the end.
	curvePool = 128
	// curveCheckEvery is the interval of an engine's check in seconds. All nodes'
	// agents share this machine, which real ones do not.
	curveCheckEvery = 120
)

//go:embed curve.nomad.hcl
var curveJob string

// curveRig is what the curve is measured on: one Nomad server, one Consul
// server, Vault, curveNodes Nomad clients each with a Consul agent of its own,
// one replica of the service, and one HTTP server that answers for all engines.
type curveRig struct {
	stack    *devstack.Stack
	dir      string
	service  *service
	adminKey string
	stub     *http.Server
}

// enterCurve runs this program again in a network namespace of its own, where
// the ports of engines can be led to the stub.
func enterCurve() (inside bool, code int, err error) { return devstack.IsolatedUser() }

// startCurve starts everything. On an error nothing is left running.
func startCurve(ctx context.Context, progress func(string)) (r *curveRig, err error) {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return nil, fmt.Errorf("loopback: %w", err)
	}
	r = &curveRig{adminKey: rand.Text()}
	if err := r.answerForEngines(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	r.stack, err = devstack.Start(ctx, devstack.Config{
		Progress: progress, ExtraClients: curveNodes - 1, DynamicPorts: [2]int{curveFirstPort, curveLastPort},
		MemoryMB: 1 << 17, CPUMHz: 1 << 17,
	})
	if err != nil {
		return r, err
	}
	if err := r.yieldNodes(); err != nil {
		return r, err
	}
	r.dir = filepath.Join(r.stack.Dir, "bench")
	if err := copyExecutable(filepath.Join("bin", "orch"), filepath.Join(r.dir, "orch")); err != nil {
		return r, fmt.Errorf("%w (run `make build` first, and this at the root of the checkout)", err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "engine.nomad.hcl"), []byte(curveJob), 0o600); err != nil {
		return r, err
	}
	progress("starting the service and filling its pool")
	r.service, err = r.start(ctx, curvePrefix, curvePool)
	if err == nil {
		r.service.pool *= curveNodes
	}
	return r, err
}

// curveNice is the niceness of the nodes' agents.
const curveNice = 10

// yieldNodes lets the nodes' agents give way to the servers, the service and its
// callers: what one node does by itself takes no core from them where each has its
// own machine.
func (r *curveRig) yieldNodes() error {
	parts := r.nodeAgents()
	for _, pid := range slices.Concat(parts["nomad clients"], parts["consul clients"]) {
		// Each thread by itself; one that another made meanwhile is in the second list.
		for range 2 {
			threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
			if err != nil {
				return err
			}
			for _, thread := range threads {
				tid, err := strconv.Atoi(thread.Name())
				if err != nil {
					return err
				}
				if err := syscall.Setpriority(syscall.PRIO_PROCESS, tid, curveNice); err != nil && !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("priority of process %d: %w", pid, err)
				}
			}
		}
	}
	return nil
}

// nodeAgents are the processes of the nodes, by name; the first has the Consul server
// for its agent.
func (r *curveRig) nodeAgents() map[string][]int {
	agents := map[string][]int{}
	for i := range curveNodes {
		agents["nomad clients"] = append(agents["nomad clients"], r.stack.PID(devstack.NomadClient(i)))
		if i > 0 {
			agents["consul clients"] = append(agents["consul clients"], r.stack.PID(devstack.ConsulClient(i)))
		}
	}
	return agents
}

// start starts a service whose rows are below a prefix.
func (r *curveRig) start(ctx context.Context, prefix string, pool int) (*service, error) {
	return startService(ctx, filepath.Join(r.dir, "orch"), r.stack, map[string]string{
		"ORCH_ADDR": "127.0.0.1:0", "ORCH_ADMIN_KEY": r.adminKey, "ORCH_LOG_JSON": "true", "ORCH_LOG_LEVEL": "debug",
		"ORCH_ENGINE_DRIVER": "mock_driver", "ORCH_ENGINE_IMAGE": "none", "ORCH_ENGINE_JOB_FILE": filepath.Join(r.dir, "engine.nomad.hcl"),
		"ORCH_ENGINE_CPU_MHZ": "10", "ORCH_ENGINE_MEMORY_MB": "10", "ORCH_IDLE_TIMEOUT_S": "0",
		"ORCH_HEALTH_CHECK_INTERVAL_S": strconv.Itoa(curveCheckEvery),
		"ORCH_CONSUL_PREFIX":           prefix, "ORCH_VOLUME_POOL": strconv.Itoa(pool),
		"ORCH_DATABASE_URL": "sqlite://" + r.auditFile(prefix), "ORCH_PPROF_ADDR": "127.0.0.1:0",
	})
}

const (
	// curvePrefix is where the service keeps its rows in Consul.
	curvePrefix = "bench-scale/"
	// rowsPrefix is where one keeps rows of engines that have no jobs.
	rowsPrefix = "bench-rows/"
)

// auditFile is the audit log of the service whose rows are below a prefix.
func (r *curveRig) auditFile(prefix string) string {
	return filepath.Join(r.dir, strings.TrimSuffix(prefix, "/")+".db")
}

// answerForEngines starts the server that all engines are: it says that it is
// healthy, and knows no other path. The kernel leads the engines' ports to it.
func (r *curveRig) answerForEngines(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	r.stub = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.URL.Path == "/health":
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"status": "ok", "uptime_seconds": 1, "subsystems": {}}`)
		case req.Header.Get("X-Engine-Key") == "":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})}
	go func() { _ = r.stub.Serve(l) }() // until close
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`table ip engines {
	chain output {
		type nat hook output priority -100
		tcp dport %d-%d redirect to :%d
	}
}
`, curveFirstPort, curveLastPort, l.Addr().(*net.TCPAddr).Port))
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("nft (of the package nftables): %w: %s", err, out), r.stub.Close())
	}
	return nil
}

// close ends everything.
func (r *curveRig) close() error {
	var errs []error
	if r.service != nil {
		errs = append(errs, r.service.stop())
	}
	if r.stack != nil {
		errs = append(errs, r.stack.Stop())
	}
	return errors.Join(append(errs, r.stub.Close())...)
}

// parts are the processes that take part, by name.
func (r *curveRig) parts() map[string][]int {
	parts := r.nodeAgents()
	parts["orch"], parts["bench"] = []int{r.service.cmd.Process.Pid}, []int{os.Getpid()}
	for name, c := range map[string]devstack.Component{"nomad server": devstack.NomadServer, "consul server": devstack.Consul, "vault": devstack.Vault} {
		parts[name] = []int{r.stack.PID(c)}
	}
	return parts
}

const (
	// restedBelow is the CPU that Nomad's server takes when it has worked through its
	// evaluations, in percent of a core, and restedWithin how long that may take.
	restedBelow  = 20
	restedWithin = 2 * time.Minute
	restedOver   = 2 * time.Second
)

// rested waits until Nomad's server has nothing more to do, and says how long that
// took. It gives up after restedWithin.
func (r *curveRig) rested(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	for {
		taken, err := r.taken(func() error { return wait(ctx, restedOver) })
		if err != nil {
			return 0, err
		}
		if took := time.Since(began); taken["nomad server"] < restedBelow || took > restedWithin {
			return took, nil
		}
	}
}

// taken is how much CPU all parts take while something is done, in percent of a core.
func (r *curveRig) taken(do func() error) (map[string]float64, error) {
	began := time.Now()
	before, err := r.used()
	if err != nil {
		return nil, err
	}
	if err := do(); err != nil {
		return nil, err
	}
	after, err := r.used()
	if err != nil {
		return nil, err
	}
	took, taken := millis(time.Since(began)), map[string]float64{}
	for name, u := range after {
		taken[name] = (u.CPUMs - before[name].CPUMs) / took * 100
	}
	return taken, nil
}

// usage is what processes hold and have used.
type usage struct {
	RSSMiB float64 `json:"rss_mib"`
	CPUMs  float64 `json:"cpu_ms"`
}

// used reads what all parts hold and have used since they began.
func (r *curveRig) used() (map[string]usage, error) {
	all := map[string]usage{}
	for name, pids := range r.parts() {
		var sum usage
		for _, pid := range pids {
			mib, err := procMiB(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
			if err != nil {
				return nil, err
			}
			sum.RSSMiB += mib
			own, _, err := cpuTime(pid)
			if err != nil {
				return nil, err
			}
			sum.CPUMs += own
		}
		all[name] = sum
	}
	return all, nil
}
