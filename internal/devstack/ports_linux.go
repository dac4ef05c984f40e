package devstack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
)

const loopback = "127.0.0.1"

// slot is one stack's block of ports. An abstract Unix socket reserves it: the kernel
// removes the socket with its last holder, it leaves no file, and its name belongs to the
// same network namespace as the ports. The reaper inherits it, so that no other stack gets
// the ports while tasks of a killed parent still use them.
type slot struct {
	base   int
	holder *os.File
	next   int
}

// takeSlot reserves the first block that no other stack has and where nothing listens.
func takeSlot() (*slot, error) {
	listening := listeningPorts()
	for _, base := range slotBases(ephemeralRange()) {
		if slices.ContainsFunc(listening, func(p int) bool { return p >= base && p < base+slotSize }) {
			continue
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@orch/devstack/" + strconv.Itoa(base), Net: "unix"})
		if err != nil {
			continue // held by another stack
		}
		holder, err := l.File()
		_ = l.Close() // the duplicate in holder keeps the name
		if err != nil {
			return nil, fmt.Errorf("reserving a port range: %w", err)
		}
		return &slot{base: base, holder: holder, next: base}, nil
	}
	return nil, errors.New("no port range is free: too many stacks run on this machine; end one of them")
}

// slotBases returns the slots outside the ephemeral range, or all slots if there is none
// outside.
func slotBases(low, high int) []int {
	var all, clear []int
	for i := range slotCount {
		base := slotBase + i*slotSize
		all = append(all, base)
		if base+slotSize <= low || base > high {
			clear = append(clear, base)
		}
	}
	if len(clear) > 0 {
		return clear
	}
	return all
}

// port returns the next free port for an agent.
func (s *slot) port() (int, error) {
	for ; s.next < s.base+slotAgentPorts; s.next++ {
		if portFree(s.next) {
			s.next++
			return s.next - 1, nil
		}
	}
	return 0, fmt.Errorf("no port from %d to %d is free", s.base, s.base+slotAgentPorts-1)
}

// dynamicPorts divides the ports for tasks among the nodes; see Config.DynamicPorts.
func (s *slot) dynamicPorts(want [2]int, nodes int) [][2]int {
	lo, hi := want[0], want[1]
	switch {
	case lo == 0 && hi > 0: // hi ports per node
		lo, hi = s.base+slotAgentPorts, s.base+slotAgentPorts+hi*nodes-1
	case lo == 0:
		lo, hi = s.base+slotAgentPorts, s.base+slotSize-1
	}
	each := (hi - lo + 1) / nodes
	ranges := make([][2]int, nodes)
	for i := range ranges {
		ranges[i] = [2]int{lo + i*each, lo + (i+1)*each - 1}
	}
	return ranges
}

func (s *slot) release() { _ = s.holder.Close() }

func portFree(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort(loopback, strconv.Itoa(port)))
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}

// dockerListens returns an error if no docker engine listens on the socket, unless the
// socket is "".
func dockerListens(ctx context.Context, socket string) error {
	if socket == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(socket, "unix://"))
	if err != nil {
		return fmt.Errorf("no docker engine listens on %s: start one (tools/dockerd.sh start DIR prints its address), and name it in DOCKER_HOST: %w", socket, err)
	}
	return conn.Close()
}

func ephemeralRange() (low, high int) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		if _, err = fmt.Sscan(string(text), &low, &high); err == nil {
			return low, high
		}
	}
	return 32768, 60999 // the kernel's default
}

// listeningPorts returns the TCP ports on which any process of this machine listens.
func listeningPorts() []int {
	var ports []int
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			field := strings.Fields(sc.Text())
			if len(field) < 4 || field[3] != "0A" { // LISTEN
				continue
			}
			_, hex, _ := strings.Cut(field[1], ":")
			if port, err := strconv.ParseInt(hex, 16, 32); err == nil {
				ports = append(ports, int(port))
			}
		}
		_ = f.Close()
	}
	return ports
}
