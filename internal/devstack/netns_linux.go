package devstack

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// isolatedEnv is an environment variable of a process that Isolated started.
const isolatedEnv = "ORCH_DEVSTACK_ISOLATED"

// NeedIsolation returns an error that names what Isolated lacks on this machine; nil: it
// works.
func NeedIsolation() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run this with sudo, or in a container with --privileged")
	}
	err := onThread(func() error { return syscall.Unshare(syscall.CLONE_NEWNET) })
	if err != nil {
		return fmt.Errorf("cannot create network namespaces (%w): run this with CAP_SYS_ADMIN and CAP_NET_ADMIN, as in a container with --privileged", err)
	}
	return nil
}

// onThread runs f on a thread that ends afterwards, so that changes of f to its thread have
// no other effect.
func onThread(f func() error) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		failed <- f()
	}()
	return <-failed
}

// Isolated runs this program again, with the same arguments, in its own network namespace,
// and returns its exit code. In that second process it returns inside = true immediately.
// The kernel removes the namespace with its last process, however the processes end.
func Isolated() (inside bool, code int, err error) {
	return again(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
}

// ordinaryUser is the user id that a program started by IsolatedUser sees as its own.
const ordinaryUser = 1000

// IsolatedUser is Isolated as an ordinary user: the second process owns the files of the
// first one and administers its network namespace, but is not root. Nomad then creates no
// mounts and no cgroups for its tasks, which every client and every reader of the mount
// table would see.
func IsolatedUser() (inside bool, code int, err error) {
	return again(&syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: ordinaryUser, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: ordinaryUser, HostID: os.Getegid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN},
	})
}

// again runs this program once more with the attributes; see Isolated.
func again(attr *syscall.SysProcAttr) (inside bool, code int, err error) {
	if os.Getenv(isolatedEnv) != "" {
		return true, 0, os.Unsetenv(isolatedEnv)
	}
	exe, err := os.Executable()
	if err != nil {
		return false, 1, err
	}
	runtime.LockOSThread() // Pdeathsig is sent when the thread ends
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), isolatedEnv+"=1")
	attr.Pdeathsig, attr.Setpgid = syscall.SIGKILL, true
	cmd.SysProcAttr = attr
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return false, 1, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the process
	for {
		select {
		case sig := <-signals:
			_ = cmd.Process.Signal(sig)
		case err := <-ended:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return false, max(exit.ExitCode(), 1), nil // -1: by a signal
			}
			return false, 0, err
		}
	}
}

// The addresses and names of a Network. The calling process has the address hubAddr.
const (
	subnet     = "10.211.0."
	subnetBits = 24
	hubAddr    = subnet + "1"
	bridgeName = "br0"
	hostLink   = "eth0"
)

// Network is a network of hosts on one bridge. Each host is a network namespace; the bridge
// is in the namespace of this process, which therefore reaches all hosts. The process must
// be in its own namespace: see Isolated.
type Network struct {
	bridge *netlink.Bridge
	hosts  map[string]*host
}

type host struct {
	addr string
	ns   netns.NsHandle
	port netlink.Link // the bridge's end of the cable
}

// has reports whether a process is on the host.
func (h *host) has(pid int) bool {
	var of, its unix.Stat_t
	return unix.Fstat(int(h.ns), &of) == nil && unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &its) == nil && of.Ino == its.Ino && of.Dev == its.Dev
}

// NewNetwork creates a network without hosts. It fails if the namespace of this process has
// other links than lo.
func NewNetwork() (*Network, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	if len(links) > 1 {
		return nil, fmt.Errorf("cannot create a test network in this namespace: it has %d links, so others use it", len(links))
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	n := &Network{bridge: &netlink.Bridge{LinkAttrs: attrs}, hosts: map[string]*host{}}
	if err := netlink.LinkAdd(n.bridge); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	return n, configureLink(netlink.LinkByName, netlink.AddrAdd, netlink.LinkSetUp, bridgeName, hubAddr)
}

func configureLink(find func(string) (netlink.Link, error), add func(netlink.Link, *netlink.Addr) error, up func(netlink.Link) error, name, addr string) error {
	link, err := find(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	ip := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(addr), Mask: net.CIDRMask(subnetBits, 32)}}
	if err := add(link, ip); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return up(link)
}

// AddHost creates a host and returns its address. number is the last part of the address,
// from 2 to 254.
func (n *Network) AddHost(name string, number int) (addr string, err error) {
	h := &host{addr: fmt.Sprint(subnet, number), ns: netns.None()}
	err = onThread(func() error {
		ns, err := netns.New() // and enters it, on this thread
		if err != nil {
			return err
		}
		h.ns = ns
		// Without IPv6 there is no second address that an agent could listen on or advertise.
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	})
	if err != nil && !h.ns.IsOpen() {
		return "", fmt.Errorf("namespace of %s: %w", name, err)
	}
	n.hosts[name] = h
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprint("h", number)
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: hostLink, PeerNamespace: netlink.NsFd(int(h.ns))}
	if err := netlink.LinkAdd(cable); err != nil {
		return "", fmt.Errorf("cable of %s: %w", name, err)
	}
	if h.port, err = netlink.LinkByName(attrs.Name); err != nil {
		return "", fmt.Errorf("cable of %s: %w", name, err)
	}
	if err := errors.Join(netlink.LinkSetMaster(h.port, n.bridge), netlink.LinkSetUp(h.port)); err != nil {
		return "", fmt.Errorf("cable of %s: %w", name, err)
	}
	in, err := netlink.NewHandleAt(h.ns)
	if err != nil {
		return "", fmt.Errorf("host %s: %w", name, err)
	}
	defer in.Close()
	if err := configureLink(in.LinkByName, in.AddrAdd, in.LinkSetUp, hostLink, h.addr); err != nil {
		return "", fmt.Errorf("host %s: %w", name, err)
	}
	lo, err := in.LinkByName("lo")
	if err == nil {
		err = in.LinkSetUp(lo)
	}
	return h.addr, err
}

// Hosts returns the names of all hosts, sorted.
func (n *Network) Hosts() []string {
	var names []string
	for name := range n.hosts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Addr returns the address of a host.
func (n *Network) Addr(name string) string { return n.hosts[name].addr }

// On runs start on a host: processes that it starts and sockets that it opens are in the
// host's namespace.
func (n *Network) On(name string, start func() error) error {
	h := n.hosts[name]
	if h == nil {
		return fmt.Errorf("the network has no host %q: it has %s", name, strings.Join(n.Hosts(), ", "))
	}
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := netns.Set(h.ns); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = start()
	if back := netns.Set(own); back != nil {
		return errors.Join(err, back) // the thread stays locked, so that no other goroutine gets it
	}
	runtime.UnlockOSThread()
	return err
}

// Cut drops all packets to and from a host without an error to either side, as if its cable
// were pulled. Connections within the host keep working.
func (n *Network) Cut(name string) error { return netlink.LinkSetDown(n.hosts[name].port) }

// Part drops all packets between the named hosts. All other hosts and this process still
// reach each of them.
func (n *Network) Part(names ...string) error {
	for _, name := range names {
		if err := netlink.LinkSetIsolated(n.hosts[name].port, true); err != nil {
			return err
		}
	}
	return nil
}

// Heal undoes Cut and Part.
func (n *Network) Heal(names ...string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, netlink.LinkSetUp(n.hosts[name].port), netlink.LinkSetIsolated(n.hosts[name].port, false))
	}
	return errors.Join(errs...)
}

// Close removes the links and the bridge. The kernel removes each namespace with its last
// process.
func (n *Network) Close() error {
	var errs []error
	for _, h := range n.hosts {
		if h.port != nil {
			errs = append(errs, netlink.LinkDel(h.port))
		}
		if h.ns.IsOpen() {
			errs = append(errs, h.ns.Close())
		}
	}
	return errors.Join(append(errs, netlink.LinkDel(n.bridge))...)
}
