package server

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// keptDescriptors is how many file descriptors are reserved for the rest of the
	// service: up to 68 connections each to Nomad, Consul and Vault, those to the audit
	// database, and probes of engines. If the process has few descriptors, half of them are
	// reserved.
	keptDescriptors = 512
	// mostDescriptors replaces a higher or infinite limit of the process.
	mostDescriptors = 1 << 20
	// mostIdle is from how many connections between two requests on no further one is kept
	// open. Each one takes 20 KB of memory (measured with 5,000), while opening another one
	// takes less than a millisecond.
	mostIdle = 1000
	// limitSaid is the minimum time between two log lines about a reached limit.
	limitSaid = time.Minute
)

// descriptors returns how many file descriptors this process may have. At the start of the
// process, Go has raised the soft limit to the hard limit, or to one less.
func descriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // the usual limit
	}
	return int(min(limit.Cur, mostDescriptors))
}

// connectionsOf returns how many connections to accept with this number of descriptors.
func connectionsOf(descriptors int) int {
	return max(1, descriptors-min(descriptors/2, keptDescriptors))
}

// limited is a listener with a maximum number of open connections. At the limit, a new
// connection replaces the one that has been idle longest, or else the oldest that has sent
// no request. If all connections have a request in progress, the new one waits.
type limited struct {
	net.Listener
	most, mostIdle int
	log            hclog.Logger

	mu      sync.Mutex
	changed *sync.Cond
	open    int
	closed  bool
	idle    list.List // between two requests, longest idle first
	fresh   list.List // have sent no request yet, oldest first
	said    time.Time
}

func limit(l net.Listener, most int, log hclog.Logger) *limited {
	lim := &limited{Listener: l, most: most, mostIdle: mostIdle, log: log}
	lim.changed = sync.NewCond(&lim.mu)
	return lim
}

// limitedConn is an element of the list for its state, if its state has one.
type limitedConn struct {
	net.Conn
	of     *limited
	in     *list.List
	at     *list.Element
	closed bool
}

// Accept waits for a connection and, at the limit, until a connection has ended.
func (l *limited) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &limitedConn{Conn: conn, of: l}
	l.mu.Lock()
	for l.open >= l.most && !l.closed {
		l.say()
		victim := l.oldest()
		if victim == nil {
			l.changed.Wait()
			continue
		}
		l.mu.Unlock()
		_ = victim.Close()
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	if l.closed {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	l.open++
	c.enter(&l.fresh)
	return c, nil
}

// oldest removes from its list the connection to close first, and returns it, or nil.
func (l *limited) oldest() *limitedConn {
	for _, of := range []*list.List{&l.idle, &l.fresh} {
		if first := of.Front(); first != nil {
			c := first.Value.(*limitedConn)
			c.enter(nil)
			return c
		}
	}
	return nil
}

func (l *limited) say() {
	if time.Since(l.said) > limitSaid {
		l.said = time.Now()
		l.log.Warn("reached the maximum number of connections, closing idle ones: raise ORCH_MAX_CONNECTIONS or the limit of open files (ulimit -n, LimitNOFILE)", "connections", l.most)
	}
}

// Close closes the listener and makes Accept return.
func (l *limited) Close() error {
	l.mu.Lock()
	l.closed = true
	l.changed.Broadcast()
	l.mu.Unlock()
	return l.Listener.Close()
}

// state is the [http.Server] hook that is called when a connection changes its state.
func (l *limited) state(conn net.Conn, to http.ConnState) {
	c, ok := limitedOf(conn)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch to {
	case http.StateActive:
		c.enter(nil)
	case http.StateIdle:
		c.enter(&l.idle)
		l.changed.Signal()
	}
}

// crowded reports whether so many connections are idle that a client should close its own
// after its request. Closing an idle one here could break a request that is on its way.
func (l *limited) crowded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.idle.Len() >= l.mostIdle
}

// enter moves c to a list, or removes it from its list if to is nil or c is closed. The
// caller holds the listener's lock.
func (c *limitedConn) enter(to *list.List) {
	if c.closed {
		to = nil
	}
	if c.in != nil {
		c.in.Remove(c.at)
	}
	if c.in = to; to != nil {
		c.at = to.PushBack(c)
	}
}

// Close closes the connection and lets a waiting one in.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.enter(nil)
		c.of.open--
		c.of.changed.Signal()
	}
	return err
}
