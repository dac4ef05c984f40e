package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"
)

// The contract allows 30 s from SIGTERM to the exit. drainTimeout leaves ten of them to
// close the brain. A response may take up to writeTimeout, which is therefore no longer
// than a drain.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 15 * time.Second
	writeTimeout  = 20 * time.Second
	idleTimeout   = 90 * time.Second
	drainTimeout  = 20 * time.Second
	closeTimeout  = 8 * time.Second

	maxHeader = 16 << 10
	// newConnGrace is the time for open connections to send a first request when draining
	// begins. Shutdown alone would wait 5 s for each.
	newConnGrace = 200 * time.Millisecond
)

// Run runs an engine: it locks the brain, listens, serves until ctx ends, drains and closes
// the brain. A value on reload makes it read the key's hash again. The order matters: the
// lock comes before everything that another process could notice; the port opens before the
// brain, so that an early probe waits some milliseconds instead of being refused; and the
// brain is closed when nothing can write to it any more.
func Run(ctx context.Context, cfg Config, log *slog.Logger, reload <-chan os.Signal) (err error) {
	sw := cfg.Switches
	started := time.Now()
	if sw.ExitAtStart {
		return errors.New("switch exit-at-start: this engine cannot start")
	}
	if sw.IgnoreTerm {
		ctx = context.WithoutCancel(ctx)
	}
	keys, err := newKeyring(cfg.KeySource)
	if err != nil {
		return err
	}
	keys.both = sw.TwoKeys
	lock, err := lockBrain(cfg.BrainPath)
	if err != nil {
		return err
	}
	defer lock.Close() // the kernel would release it too
	if !wait(ctx, sw.SlowBoot) {
		return nil
	}
	if sw.EatMemory == 0 {
		eatMemory()
	}
	var ln net.Listener
	if !sw.NeverListen {
		if ln, err = net.Listen("tcp", cfg.Addr); err != nil {
			return err
		}
		defer ln.Close() // for returns before Serve
	}
	brain, err := OpenBrain(ctx, cfg.BrainPath)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		err = errors.Join(err, brain.Close(ctx))
		log.Info("stopped", "err", err)
	}()
	if ln == nil {
		log.Info("switch never-listen: running without a port")
		<-ctx.Done()
		return nil
	}
	stop := make(chan struct{})
	s := &server{cfg: cfg, brain: brain, keys: keys, log: log, started: started, stop: stop, exit: os.Exit}
	return s.serve(ctx, ln, reload, stop)
}

// serve serves requests on ln until ctx ends, then drains. When it returns, all requests
// and all its goroutines have ended.
func (s *server) serve(ctx context.Context, ln net.Listener, reload <-chan os.Signal, stop chan struct{}) error {
	sw := s.cfg.Switches
	fresh := &freshConns{conns: map[net.Conn]struct{}{}}
	srv := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ConnState:         fresh.track,
	}
	if s.cfg.TLSFile != "" {
		cert, err := newCertificate(s.cfg.TLSFile, s.log)
		if err != nil {
			return err
		}
		ln = tls.NewListener(ln, cert.config())
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	s.log.Info("listening", "addr", ln.Addr().String(), "boot_ms", float64(time.Since(s.started).Microseconds())/1000)

	if sw.CrashAfter >= 0 {
		t := time.AfterFunc(sw.CrashAfter, func() {
			s.log.Error("switch crash-after: crashing")
			s.exit(1)
		})
		defer t.Stop()
	}
	if sw.EatMemory >= 0 {
		t := time.AfterFunc(sw.EatMemory, eatMemory)
		defer t.Stop()
	}
	for serving := true; serving; {
		select {
		case err := <-served:
			return fmt.Errorf("serve: %w", err)
		case <-reload:
			s.reload()
		case <-ctx.Done():
			serving = false
		}
	}
	if sw.Linger > 0 {
		s.log.Info("switch linger: still serving", "for", sw.Linger)
		// SIGHUPs stay in the channel, so the old hash stays valid.
		wait(context.WithoutCancel(ctx), sw.Linger)
	}
	close(stop)
	err := s.drain(srv, fresh)
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	wait(context.WithoutCancel(ctx), sw.TermDelay)
	return err
}

// drain waits for requests in progress. Requests that take longer than drainTimeout are cut
// off and logged; that does not change the exit code.
func (s *server) drain(srv *http.Server, fresh *freshConns) error {
	s.log.Info("draining")
	t := time.AfterFunc(newConnGrace, fresh.closeAll)
	defer t.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	err := srv.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("requests outlasted the drain and were cut off", "after", drainTimeout)
		return srv.Close()
	}
	return err
}

// reload reads the key's hash again. After an error the old hash stays valid.
func (s *server) reload() {
	if s.cfg.Switches.NoReload {
		s.log.Info("switch no-reload: SIGHUP ignored")
		return
	}
	if err := s.keys.reload(); err != nil {
		s.log.Error("SIGHUP: cannot read the key hash, keeping the old one", "err", err)
		return
	}
	s.log.Info("SIGHUP: key hash read again")
}

// wait waits for d, or until ctx ends; it reports whether d passed.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// freshConns are the connections that have sent no request yet.
type freshConns struct {
	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	closing bool
}

func (f *freshConns) track(c net.Conn, state http.ConnState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(f.conns, c)
	case f.closing:
		c.Close()
	default:
		f.conns[c] = struct{}{}
	}
}

func (f *freshConns) closeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closing = true
	for c := range f.conns {
		c.Close()
	}
}

// eatMemory allocates memory until the process is killed for it.
func eatMemory() {
	for eaten := [][]byte(nil); ; {
		eaten = append(eaten, bytes.Repeat([]byte{1}, 1<<20)) // only written memory counts
		runtime.KeepAlive(eaten)
	}
}
