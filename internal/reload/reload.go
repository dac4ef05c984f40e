// Package reload reads files again when their content changes, or on demand: certificates,
// authorities and tokens, which are replaced while the service runs.
package reload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// every is the interval at which files are compared with what was read.
	every = 2 * time.Second
	// lifeLeft is the part of a certificate's lifetime before its end in which the log warns
	// of that end: a fifth. The warning is repeated every warnAgain.
	lifeLeft  = 5
	warnAgain = 24 * time.Hour
)

// Load reads and uses the files of a group. If it returns an error, what was read before
// stays in use. The certificate is one of the caller's own, whose end is warned of; nil:
// none.
type Load func() (own *x509.Certificate, err error)

// Watcher reads groups of files again. It is safe for concurrent use.
type Watcher struct {
	log hclog.Logger

	mu     sync.Mutex
	groups []*group
}

// New returns a Watcher without groups.
func New(log hclog.Logger) *Watcher { return &Watcher{log: log} }

// group is files that are used together, such as a certificate and its key.
type group struct {
	name      string
	variables string // that name the files
	paths     []string
	load      Load
	read      [sha256.Size]byte // digest of the content that was read last
	failed    bool              // the last load failed
	own       *x509.Certificate
	warned    time.Time // of the end of own
}

// Add loads files for the first time. name is for Ends, and variables are the names of the variables that name
// the files. Empty paths are left out; a path may be a directory, of which all files count.
func (w *Watcher) Add(name, variables string, paths []string, load Load) error {
	g := &group{name: name, variables: variables, load: load}
	for _, path := range paths {
		if path != "" {
			g.paths = append(g.paths, path)
		}
	}
	g.read = digest(g.paths)
	var err error
	if g.own, err = load(); err != nil {
		return err
	}
	if len(g.paths) == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.groups = append(w.groups, g)
	return nil
}

// Run looks for changed files, and for certificates that end soon, until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		w.look(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Ends returns the ends of the certificates of the caller's own, by the names of their
// groups.
func (w *Watcher) Ends() map[string]time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	ends := map[string]time.Time{}
	for _, g := range w.groups {
		if g.own != nil {
			ends[g.name] = g.own.NotAfter
		}
	}
	return ends
}

// Reload reads all files again, changed or not.
func (w *Watcher) Reload() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.groups {
		w.readAgain(g, digest(g.paths), true)
	}
}

// look reads changed files again. Files that are replaced one after another may not fit
// together for a moment, so a failure is only reported if it lasts for an interval.
func (w *Watcher) look(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.groups {
		if d := digest(g.paths); d != g.read {
			w.readAgain(g, d, false)
		} else if g.failed {
			w.readAgain(g, d, true)
			g.failed = false // only a change is tried again
		}
		w.warn(g, now)
	}
}

func (w *Watcher) readAgain(g *group, d [sha256.Size]byte, report bool) {
	own, err := g.load()
	changed := g.read != d
	g.read, g.failed = d, err != nil
	switch {
	case err == nil && (changed || report):
		w.log.Info("files were read again", "variables", g.variables)
	case err != nil && report:
		w.log.Error("files cannot be used; what was read before stays in use", "variables", g.variables, "error", err)
	}
	if err == nil {
		if own == nil || g.own == nil || !own.Equal(g.own) {
			g.warned = time.Time{}
		}
		g.own = own
	}
}

// warn logs that a certificate of the service's own ends soon.
func (w *Watcher) warn(g *group, now time.Time) {
	if g.own == nil || now.Sub(g.warned) < warnAgain {
		return
	}
	left := g.own.NotAfter.Sub(now)
	if left > g.own.NotAfter.Sub(g.own.NotBefore)/lifeLeft {
		return
	}
	g.warned = now
	end := g.own.NotAfter.UTC().Format(time.RFC3339)
	if left <= 0 {
		w.log.Error("a certificate has expired: replace its file", "variables", g.variables, "expired", end)
		return
	}
	w.log.Warn("a certificate expires soon: replace its file", "variables", g.variables, "expires", end)
}

// digest returns a digest of the content of files. A file that cannot be read differs from
// one that can.
func digest(paths []string) [sha256.Size]byte {
	var all bytes.Buffer
	add := func(path string) {
		b, err := os.ReadFile(path)
		if err != nil {
			b = []byte(err.Error())
		}
		_ = binary.Write(&all, binary.BigEndian, int64(len(b))) // so that moved bytes count
		all.Write(b)
	}
	for _, path := range paths {
		if entries, err := os.ReadDir(path); err == nil {
			for _, e := range entries {
				add(filepath.Join(path, e.Name()))
			}
			continue
		}
		add(path)
	}
	return sha256.Sum256(all.Bytes())
}
