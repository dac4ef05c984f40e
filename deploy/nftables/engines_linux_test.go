package nftables_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/septemberai/orch/internal/devstack"
)

// The addresses of the test. The node is a network namespace with a docker daemon; this
// process is everything else.
const (
	nodeAddr     = "10.211.0.2"
	callerAddr   = "10.211.0.1"  // this process, as a backend that calls engines, and as another node
	strangerAddr = "10.211.0.66" // this process, as somebody else
	metadataAddr = "169.254.169.254"
	internetAddr = "203.0.113.1"
)

const (
	node  = "node"
	image = "orch/reference-engine:1"
	// patience is the deadline of what must be reached, on a machine however busy.
	patience = 3 * time.Minute
	// silence is how long a dropped packet is waited for. Whether it was dropped is shown by
	// the counter of the rule, not by this time.
	silence = 2 * time.Second
)

// path is a way that packets can take. rules are those of the shipped file that forbid it;
// without: it is permitted.
type path struct {
	name  string
	from  from
	to    string
	rules []string
}

// from is a place from which a path begins.
type from struct {
	source string // of this process: its address; "": see the others
	pid    int    // of a process in a container
	node   bool
}

// TestEngineRules: without the shipped rules docker permits every path, also those that they
// forbid. With them each of these is refused; and it is permitted again as soon as the one
// line that forbids it is removed, so no line is without effect.
func TestEngineRules(t *testing.T) {
	for _, tool := range []string{"nft", "dockerd", "docker", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	n := newNode(t)
	one, two := n.engine(20001), n.engine(20002)
	engine := from{pid: one.pid}
	paths := []path{
		{"an engine to Nomad's port of its node", engine, nodeAddr + ":4646", []string{"node"}},
		{"an engine to Consul's port of its node", engine, nodeAddr + ":8500", []string{"node"}},
		{"an engine to Vault's port of its node", engine, nodeAddr + ":8200", []string{"node"}},
		{"an engine to orch on 0.0.0.0", engine, nodeAddr + ":8000", []string{"node"}},
		{"an engine to orch by the bridge", engine, n.bridge + ":8000", []string{"node"}},
		{"an engine to the published port of another", engine, nodeAddr + ":20002", []string{"node"}},
		{"an engine to another on the bridge", engine, two.addr + ":8000", []string{"engines"}},
		{"an engine to the metadata service", engine, metadataAddr + ":80", []string{"metadata"}},
		{"an engine to the agents of another node", engine, callerAddr + ":4646", []string{"cluster"}},
		{"a stranger to an engine", from{source: strangerAddr}, nodeAddr + ":20001", []string{"containers"}},
		{"a stranger to an engine that is a process", from{source: strangerAddr}, nodeAddr + ":20100", []string{"processes"}},

		{"an engine to the internet", engine, internetAddr + ":443", nil},
		{"an engine to a service that the set names", engine, callerAddr + ":53", nil},
		{"a caller to an engine", from{source: callerAddr}, nodeAddr + ":20001", nil},
		{"a caller to an engine that is a process", from{source: callerAddr}, nodeAddr + ":20100", nil},
		{"the node to an engine", from{node: true}, nodeAddr + ":20001", nil},
		{"a stranger to orch", from{source: strangerAddr}, nodeAddr + ":8000", nil},
	}
	t.Run("Without", func(t *testing.T) {
		for _, p := range paths {
			n.reaches(t, p)
		}
	})
	shipped := n.shipped()
	n.load(t, shipped)
	t.Run("With", func(t *testing.T) {
		for _, p := range paths {
			if p.rules == nil {
				n.reaches(t, p)
			} else {
				n.refused(t, p)
			}
		}
	})
	named := map[string]bool{}
	for _, p := range paths {
		for _, rule := range p.rules {
			named[rule] = true
		}
	}
	for _, m := range commented.FindAllStringSubmatch(shipped, -1) {
		rule := m[1]
		t.Run("Without "+rule, func(t *testing.T) {
			if !named[rule] {
				t.Fatal("no path shows that it is needed")
			}
			n.load(t, regexp.MustCompile(`(?m)^.* comment "`+rule+`"\n`).ReplaceAllString(shipped, ""))
			for _, p := range paths {
				if slices.Contains(p.rules, rule) {
					n.reaches(t, p)
				}
			}
		})
	}
	// Docker's own means, where these rules are not used: it forbids the bridge alone.
	t.Run("ICC", func(t *testing.T) {
		n.run("nft", "delete", "table", "inet", "orch_engines")
		n.remove(one, two)
		n.daemon("stop", "")
		n.daemon("start", "--icc=false")
		one, two := n.engine(20001), n.engine(20002)
		for _, p := range paths {
			switch {
			case p.from != engine:
				continue
			case slices.Contains(p.rules, "engines"):
				n.reaches(t, path{"the node to the engine", from{node: true}, two.addr + ":8000", nil})
				if err := n.get(from{pid: one.pid}, two.addr+":8000", silence); err == nil {
					t.Errorf("%s: it reaches it", p.name)
				}
			default:
				p.from.pid = one.pid
				n.reaches(t, p)
			}
		}
		n.remove(one, two)
	})
}

var commented = regexp.MustCompile(`(?m)^\t.* comment "([a-z]+)"$`)

// testNode is the node, its docker daemon and its engines.
type testNode struct {
	t       *testing.T
	network *devstack.Network
	dir     string // of the daemon
	bridge  string // docker0's address
}

func newNode(t *testing.T) *testNode {
	t.Helper()
	network, err := devstack.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	n := &testNode{t: t, network: network}
	if addr, err := network.AddHost(node, 2); err != nil || addr != nodeAddr {
		t.Fatalf("the node's address is %q, %v", addr, err)
	}
	for _, addr := range []string{strangerAddr, metadataAddr, internetAddr} {
		if out, err := exec.Command("ip", "addr", "add", addr+"/32", "dev", "br0").CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", addr, err, out)
		}
	}
	n.run("ip", "route", "add", "default", "via", callerAddr)
	n.run("sh", "-c", "echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables")

	if n.dir, err = os.MkdirTemp("", "on-"); err != nil { // short, because its sockets' paths are limited
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.daemon("stop", "")
		if err := os.RemoveAll(n.dir); err != nil {
			t.Error(err)
		}
	})
	n.daemon("start", "")
	build := exec.Command("sh", "../../cmd/reference-engine/build-image.sh", image)
	build.Env = append(os.Environ(), "DOCKER_HOST="+n.docker())
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	gateway, err := netip.ParsePrefix(strings.Fields(n.run("ip", "-4", "-o", "addr", "show", "docker0"))[3])
	if err != nil {
		t.Fatal(err)
	}
	n.bridge = gateway.Addr().String()
	// The agents and orch listen on every address of the node. So does an engine that is a
	// process.
	for _, port := range []string{"4646", "8500", "8200", "8000", "20100"} {
		n.listen(node, "0.0.0.0:"+port)
	}
	for _, addr := range []string{callerAddr + ":4646", callerAddr + ":53", metadataAddr + ":80", internetAddr + ":443"} {
		n.listen("", addr)
	}
	return n
}

// docker is the daemon's address.
func (n *testNode) docker() string { return "unix://" + n.dir + "/docker.sock" }

// daemon starts or stops the docker daemon on the node.
func (n *testNode) daemon(command, flags string) {
	n.t.Helper()
	cmd := exec.Command("../../tools/dockerd.sh", command, n.dir)
	// No other daemon than its own responds there.
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+n.dir+"/none", "DOCKERD_DEADLINE_S=180", "DOCKERD_FLAGS="+flags)
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := n.network.On(node, cmd.Run); err != nil {
		n.t.Fatalf("%v: %s", err, &out)
	}
}

// run runs a command on the node.
func (n *testNode) run(name string, args ...string) string {
	n.t.Helper()
	var out []byte
	err := n.network.On(node, func() (err error) { out, err = exec.Command(name, args...).CombinedOutput(); return err })
	if err != nil {
		n.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (n *testNode) dockerSays(args ...string) string {
	n.t.Helper()
	return n.run("docker", append([]string{"-H", n.docker()}, args...)...)
}

// listen serves 200 to everybody.
func (n *testNode) listen(host, addr string) {
	n.t.Helper()
	var l net.Listener
	open := func() (err error) { l, err = net.Listen("tcp4", addr); return err }
	var err error
	if host == "" {
		err = open()
	} else {
		err = n.network.On(host, open)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	n.t.Cleanup(func() { _ = server.Close(); <-done })
}

// container is an engine in a container.
type container struct {
	id   string
	addr string // on the bridge
	pid  int
}

// engine starts an engine in a container, whose port it publishes as Nomad does.
func (n *testNode) engine(port int) container {
	n.t.Helper()
	id := n.dockerSays("run", "-d", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs", "/data:mode=1777",
		"-e", "SQLITE_DB_PATH=/data/brain.sqlite", "-e", "PORT=8000", "-e", "ENGINE_KEY_HASH="+strings.Repeat("0", 64),
		"-p", fmt.Sprintf("%s:%d:8000", nodeAddr, port), image)
	said := strings.Fields(n.dockerSays("inspect", "-f", "{{.State.Pid}} {{.NetworkSettings.IPAddress}}", id))
	pid, err := strconv.Atoi(said[0])
	if err != nil || pid == 0 || len(said) != 2 {
		n.t.Fatalf("container %s: %v", id, said)
	}
	return container{id: id, addr: said[1], pid: pid}
}

func (n *testNode) remove(engines ...container) {
	n.t.Helper()
	for _, e := range engines {
		n.dockerSays("rm", "-f", e.id)
	}
}

// shipped returns the shipped file with the values of this network.
func (n *testNode) shipped() string {
	n.t.Helper()
	text, err := os.ReadFile("engines.nft")
	if err != nil {
		n.t.Fatal(err)
	}
	rules := string(text)
	for old, by := range map[string]string{
		"elements = { 10.0.0.0/24 }":      "elements = { " + callerAddr + " }",
		"type ipv4_addr . inet_service\n": "type ipv4_addr . inet_service\n elements = { " + callerAddr + " . 53 }\n",
	} {
		if strings.Count(rules, old) != 1 {
			n.t.Fatalf("%q is %d times in the file", old, strings.Count(rules, old))
		}
		rules = strings.Replace(rules, old, by, 1)
	}
	return rules
}

// load replaces the rules on the node.
func (n *testNode) load(t *testing.T, rules string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules.nft")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	n.run("nft", "-f", file)
}

// get calls a server from a place.
func (n *testNode) get(f from, to string, limit time.Duration) error {
	client := &http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		dialer := &net.Dialer{}
		if f.source != "" {
			dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(f.source)}
		}
		dial := func() (err error) { conn, err = dialer.DialContext(ctx, "tcp4", addr); return err }
		switch {
		case f.pid != 0:
			err = within(f.pid, dial)
		case f.node:
			err = n.network.On(node, dial)
		default:
			err = dial()
		}
		return conn, err
	}}}
	resp, err := client.Get("http://" + to + "/health")
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// within runs f in the network namespace of a process.
func within(pid int, f func() error) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		ns, err := netns.GetFromPid(pid)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			err = f()
		}
		failed <- err
	}()
	return <-failed
}

// reaches fails the test unless the path works.
func (n *testNode) reaches(t *testing.T, p path) {
	t.Helper()
	began := time.Now()
	for {
		err := n.get(p.from, p.to, 10*time.Second)
		if err == nil {
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("%s: %v", p.name, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var counted = regexp.MustCompile(`counter packets ([0-9]+) .* comment "([a-z]+)"`)

// refused fails the test unless the rules of the path refuse it.
func (n *testNode) refused(t *testing.T, p path) {
	t.Helper()
	count := func() (total int) {
		for _, m := range counted.FindAllStringSubmatch(n.run("nft", "list", "table", "inet", "orch_engines"), -1) {
			if packets, err := strconv.Atoi(m[1]); err == nil && slices.Contains(p.rules, m[2]) {
				total += packets
			}
		}
		return total
	}
	before := count()
	if err := n.get(p.from, p.to, silence); err == nil {
		t.Errorf("%s: it reaches it", p.name)
	}
	for began := time.Now(); count() == before; time.Sleep(100 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("%s: the rule %v has refused nothing", p.name, p.rules)
		}
		_ = n.get(p.from, p.to, silence)
	}
}
