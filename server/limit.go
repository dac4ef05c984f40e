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
	// keptDescriptors is how many file descriptors clients leave to the rest of the
	// service: up to 68 connections each to Nomad, Consul and Vault, the audit database's,
	// the probes of engines. Of few descriptors it is half.
	keptDescriptors = 512
	// mostDescriptors bounds what counts of a limit that is none.
	mostDescriptors = 1 << 20
	// limitSaid is how often the log says that the limit is reached.
	limitSaid = time.Minute
)

// descriptors is how many file descriptors this process may have. Go has raised
// the soft limit to the hard one, or one less, when the process started.
func descriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // the usual one
	}
	return int(min(limit.Cur, mostDescriptors))
}

// connectionsOf is how many connections are accepted with so many descriptors.
func connectionsOf(descriptors int) int {
	return max(1, descriptors-min(descriptors/2, keptDescriptors))
}

// limited is a listener that keeps at most so many connections. Beyond them the
// one that is idle for the longest is closed for a new one, then the oldest that
// has sent nothing; where all have a request, the new one waits for the end of one.
type limited struct {
	net.Listener
	most int
	log  hclog.Logger

	mu      sync.Mutex
	changed *sync.Cond
	open    int
	closed  bool
	idle    list.List // between two requests, the longest first
	fresh   list.List // have sent nothing yet, the oldest first
	said    time.Time
}

func limit(l net.Listener, most int, log hclog.Logger) *limited {
	lim := &limited{Listener: l, most: most, log: log}
	lim.changed = sync.NewCond(&lim.mu)
	return lim
}

// limitedConn is in the list of its state, while it has one.
type limitedConn struct {
	net.Conn
	of     *limited
	in     *list.List
	at     *list.Element
	closed bool
}

// Accept waits for a connection and, at the limit, for room for it.
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

// oldest takes the connection out that is closed first, nil for none.
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
		l.log.Warn("the limit of connections is reached, idle ones are closed: raise the limit of open files (ulimit -n, LimitNOFILE)", "connections", l.most)
	}
}

// Close ends Accept too.
func (l *limited) Close() error {
	l.mu.Lock()
	l.closed = true
	l.changed.Broadcast()
	l.mu.Unlock()
	return l.Listener.Close()
}

// state is the hook of [http.Server] for what its connections do.
func (l *limited) state(conn net.Conn, to http.ConnState) {
	c, ok := conn.(*limitedConn)
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

// enter moves c to a list, nil for none; its listener is locked. A closed one
// enters none any more.
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

// Close makes room for another connection.
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
