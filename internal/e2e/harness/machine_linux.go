package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Machine is a Debian 12 whose systemd runs in a container of systemd-nspawn. It needs root.
type Machine struct {
	Root string        // of its files, on this machine; empty if they are on a file system of its own
	pid  string        // of its first process
	host *os.Process   // systemd-nspawn
	gone chan struct{} // closed when it has ended
}

// Debian returns a directory with a bare Debian 12, systemd and these packages, in the user's
// cache. debootstrap makes it once, under this name; nobody may change it.
func Debian(t *testing.T, name string, packages ...string) string {
	t.Helper()
	caches, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cached := filepath.Join(caches, "orch", name)
	if _, err := os.Stat(cached); !errors.Is(err, os.ErrNotExist) {
		return cached
	}
	if err := os.MkdirAll(filepath.Dir(cached), 0o755); err != nil {
		t.Fatal(err)
	}
	made, err := os.MkdirTemp(filepath.Dir(cached), "debian-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(made) }()
	include := strings.Join(append([]string{"systemd-sysv", "dbus"}, packages...), ",")
	debootstrap := exec.CommandContext(t.Context(), "debootstrap", "--variant=minbase", "--include="+include, "bookworm", filepath.Join(made, "root"))
	if out, err := debootstrap.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, Tail(string(out), 3000))
	}
	// Another run may have been first.
	if err := os.Rename(filepath.Join(made, "root"), cached); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return cached
}

// nspawn runs systemd in the directory that follows --directory=.
var nspawn = []string{"systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=off", "--timezone=off",
	"--link-journal=no", "--boot"}

// ownProc begins a script in new namespaces of processes and mounts.
const ownProc = "mount --make-rprivate /; mount -t proc proc /proc\n"

// BootMachine starts a machine with its files in a directory, and in the network of this one.
// It ends with the test.
func BootMachine(t *testing.T, root string) *Machine {
	t.Helper()
	m := startMachine(t, append(append([]string{"sh", "-euc", ownProc + `exec "$@"`, "sh"}, nspawn...), "--directory="+root)...)
	m.Root = root
	t.Cleanup(func() { m.end(t, syscall.SIGTERM) }) // an orderly shutdown
	return m
}

// Network is a network namespace with a bridge, to which machines are connected.
type Network struct{ pid string }

// NewNetwork returns a network in which this host has an address, with the length of its
// prefix. It ends with the test.
func NewNetwork(t *testing.T, address string) *Network {
	t.Helper()
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	n := &Network{pid: fmt.Sprint(holder.Process.Pid)}
	script := "ip link set lo up; ip link add bridge type bridge; ip address add " + address + " dev bridge; ip link set bridge up"
	if out, err := n.Command("sh", "-euc", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return n
}

// Command is a command of this host in the network.
func (n *Network) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=/proc/" + n.pid + "/ns/net", name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Boot starts a machine in the network. Its files are those of the directory base, which it
// does not change: what it writes is in memory, and gone with it. Its options are those of
// systemd-nspawn.
func (n *Network) Boot(t *testing.T, name, address, base string, options ...string) *Machine {
	t.Helper()
	const prepare = ownProc + `dir=$1 base=$2 name=$3; shift 3
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/changes" "$dir/work" "$dir/root"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$dir/changes,workdir=$dir/work" "$dir/root"
echo "$name" >"$dir/root/etc/hostname"
exec "$@"`
	dir := t.TempDir()
	args := append([]string{"--net=/proc/" + n.pid + "/ns/net", "sh", "-euc", prepare, "sh", dir, base, name}, nspawn...)
	args = append(args, "--directory="+dir+"/root", "--machine="+name, "--network-bridge=bridge")
	m := startMachine(t, append(append([]string{"nsenter"}, args...), options...)...)
	t.Cleanup(func() { m.Kill(t) })
	// Nomad makes a cgroup for each task. With cgroups of version 1, systemd-nspawn lets a machine
	// only read them.
	m.Run(t, "for group in /sys/fs/cgroup/*/; do mount -o remount,rw,bind $group 2>/dev/null || true; done")
	m.Run(t, "ip address add "+address+" dev host0; ip link set host0 up")
	return m
}

// startMachine runs a command that becomes systemd-nspawn, and waits until its systemd has
// started. It is the first process of a namespace, with which the kernel ends all others, and
// its mounts go away with them, even if the test is killed.
func startMachine(t *testing.T, command ...string) *Machine {
	t.Helper()
	log := &LogBuffer{}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &Machine{host: cmd.Process, gone: make(chan struct{})}
	go func() { defer close(m.gone); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // if the machine has not started
		<-m.gone
		if t.Failed() {
			t.Logf("console of the machine:\n%s", Tail(log.String(), 4000))
		}
	})
	Eventually(t, "the machine has started", func() error {
		select {
		case <-m.gone:
			return nil
		default:
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil {
			return err
		}
		for pid := range strings.FieldsSeq(string(children)) {
			if !firstOfItsOwn(pid) {
				continue // in any other process, systemctl would ask the systemd of this host
			}
			m.pid = pid
			if state, err := m.Try("systemctl is-system-running"); err == nil || state == "degraded" {
				return nil
			}
		}
		return errors.New(Tail(log.String(), 300))
	})
	select {
	case <-m.gone:
		t.Fatalf("the machine ended:\n%s", log.String())
	default:
	}
	return m
}

// firstOfItsOwn reports whether a process is the first one of a namespace of processes.
func firstOfItsOwn(pid string) bool {
	text, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return false
	}
	_, ids, _ := strings.Cut(string(text), "\nNSpid:")
	ids, _, _ = strings.Cut(ids, "\n")
	own := strings.Fields(ids)
	return len(own) > 1 && own[len(own)-1] == "1"
}

// Kill switches the machine off.
func (m *Machine) Kill(t *testing.T) { t.Helper(); m.end(t, syscall.SIGKILL) }

// end sends a signal to systemd-nspawn, and waits until all processes have ended.
func (m *Machine) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	_ = m.host.Signal(signal)
	Eventually(t, "the machine ends", func() error {
		select {
		case <-m.gone:
			return nil
		default:
			return errors.New("it runs")
		}
	})
}

// Try runs a shell script in the machine, and returns what it prints.
func (m *Machine) Try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute) // less than the suite's limit
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--target="+m.pid, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "sh", "-euc", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	printed, err := cmd.CombinedOutput()
	return strings.TrimSuffix(string(printed), "\n"), err
}

// Run is Try of a script that must not fail.
func (m *Machine) Run(t *testing.T, script string) string {
	t.Helper()
	printed, err := m.Try(script)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, printed)
	}
	return printed
}

// Want compares what a script prints. It may fail.
func (m *Machine) Want(t *testing.T, script, want string) {
	t.Helper()
	if got, _ := m.Try(script); got != want {
		t.Errorf("%s\nprinted %q, want %q", script, got, want)
	}
}

// Write makes a file in a machine whose files are in a directory.
func (m *Machine) Write(t *testing.T, path, text, owner string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.Root, path), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	m.Run(t, "chown "+owner+" "+path)
}
