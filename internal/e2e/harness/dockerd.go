package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/septemberai/orch/client"
)

// Daemon is a docker daemon of a test, which the test may kill.
type Daemon struct {
	t           *testing.T
	dir, bridge string
	flags       []string
	process     *os.Process
	exited      chan struct{} // closed when the process has ended; nil: none runs
}

var bridges atomic.Int32

// NewDaemon starts a daemon with an image of the reference engine. It has a separate bridge
// and writes no firewall rules, because other daemons run on this machine. flags are added
// to its command line.
func NewDaemon(t *testing.T, flags ...string) *Daemon {
	t.Helper()
	for _, tool := range []string{"dockerd", "ip"} {
		if _, err := exec.LookPath(tool); err != nil || os.Getuid() != 0 {
			t.Skipf("a docker daemon of its own needs root and %s", tool)
		}
	}
	dir, err := os.MkdirTemp("", "od-") // short, because its sockets' paths are limited
	if err != nil {
		t.Fatal(err)
	}
	n := int(bridges.Add(1))
	d := &Daemon{t: t, dir: dir, flags: flags, bridge: fmt.Sprintf("od%d-%d", os.Getpid()%100000, n)}
	t.Cleanup(d.remove)
	net := fmt.Sprintf("10.%d.%d.1/24", 200+os.Getpid()/250%50, (os.Getpid()+n)%250)
	for _, args := range [][]string{{"link", "add", "name", d.bridge, "type", "bridge"}, {"addr", "add", net, "dev", d.bridge}, {"link", "set", d.bridge, "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("no bridge for a docker daemon: ip %v: %v: %s", args, err, out)
		}
	}
	if err := os.WriteFile(d.config(), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Start()
	build := exec.Command("sh", Repository+"/cmd/reference-engine/build-image.sh", DockerImage)
	build.Env = append(os.Environ(), "DOCKER_HOST="+d.Address())
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v: %s", err, out)
	}
	return d
}

// Address is where the daemon listens: unix://...
func (d *Daemon) Address() string { return "unix://" + d.socket() }

func (d *Daemon) config() string { return filepath.Join(d.dir, "daemon.json") }

// Configure replaces the daemon's configuration file, and makes the daemon read it.
func (d *Daemon) Configure(text string) {
	d.t.Helper()
	if err := os.WriteFile(d.config(), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := d.process.Signal(syscall.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
}

// Inspect returns the container of an engine, found by its allocation's port.
func (d *Daemon) Inspect(e *client.Engine) Container {
	d.t.Helper()
	return inspect(d.t, d.Address(), e)
}

func (d *Daemon) socket() string { return filepath.Join(d.dir, "docker.sock") }

// Start starts the daemon and waits until it responds. If it fails, it is started again, as
// systemd would do.
func (d *Daemon) Start() {
	d.t.Helper()
	Eventually(d.t, "the docker daemon responds", func() error {
		if d.exited != nil {
			select {
			case <-d.exited:
				d.exited = nil
			default:
			}
		}
		if d.exited == nil {
			d.launch()
		}
		return exec.Command("docker", "-H", d.Address(), "version").Run()
	})
}

func (d *Daemon) launch() {
	d.t.Helper()
	out, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	args := append([]string{
		"-H", d.Address(), "--data-root", filepath.Join(d.dir, "data"), "--exec-root", filepath.Join(d.dir, "exec"), "-p", filepath.Join(d.dir, "pid"),
		"--config-file", d.config(), "--bridge", d.bridge, "--iptables=false",
	}, d.flags...)
	cmd, exited := exec.Command("dockerd", args...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() {
		defer close(exited)
		_ = cmd.Wait() // the error is that it was killed
	}()
	d.process, d.exited = cmd.Process, exited
}

// Containerd returns the pid of the containerd that the daemon has started; 0: none.
func (d *Daemon) Containerd() int {
	text, _ := os.ReadFile(filepath.Join(d.dir, "exec/containerd/containerd.pid"))
	pid, _ := strconv.Atoi(string(text))
	return pid
}

// End sends a signal to the daemon and to others, and waits until it and its containerd
// have ended.
func (d *Daemon) End(signal syscall.Signal, others ...int) {
	d.t.Helper()
	if d.exited == nil {
		return
	}
	containerd := d.Containerd()
	for _, pid := range append(others, d.process.Pid) {
		if err := syscall.Kill(pid, signal); err != nil {
			d.t.Error(err)
		}
	}
	<-d.exited
	d.exited = nil
	Eventually(d.t, "containerd ends", func() error {
		if state := ProcessState(containerd); containerd > 0 && state != "" && state != "Z" {
			return fmt.Errorf("process %d is in state %s", containerd, state)
		}
		return nil
	})
}

// remove ends the daemon and everything that it left.
func (d *Daemon) remove() {
	d.End(syscall.SIGTERM)
	for _, pid := range Pids() { // the shims of containers that it did not end
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.Contains(line, []byte("-address\x00"+d.dir+"/")) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if field := strings.Fields(line); strings.HasPrefix(field[4], d.dir+"/") {
			_ = syscall.Unmount(field[4], syscall.MNT_DETACH)
		}
	}
	_ = exec.Command("ip", "link", "del", d.bridge).Run()
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Error(err)
	}
}
