package server

import (
	"cmp"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

const (
	// wrongKeysEvery is the interval of the log lines about wrong keys.
	wrongKeysEvery = time.Minute
	// mostSources is how many sources are counted separately in an interval, and
	// loggedSources how many of these, those with the most wrong keys, get a line of their
	// own.
	mostSources, loggedSources = 1000, 20
	otherSources               = "others"
)

// wrongKeys counts calls with wrong keys by the address that they come from, and logs the
// counts once a minute: a line per call would hide everything else in the log.
type wrongKeys struct {
	log   hclog.Logger
	every time.Duration

	mu     sync.Mutex
	counts map[string]*wrongCount
	flush  *time.Timer // nil: nothing was counted
	closed bool
}

type wrongCount struct {
	source          string
	platform, admin int
}

func newWrongKeys(log hclog.Logger) *wrongKeys {
	return &wrongKeys{log: log, every: wrongKeysEvery, counts: map[string]*wrongCount{}}
}

// note counts a response, if it is about a wrong key.
func (k *wrongKeys) note(r *http.Request, code engine.Code) {
	if code != engine.InvalidPlatformKey && code != engine.InvalidAdminKey {
		return
	}
	source, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		source = r.RemoteAddr
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return
	}
	if k.counts[source] == nil && len(k.counts) >= mostSources {
		source = otherSources
	}
	c := k.counts[source]
	if c == nil {
		c = &wrongCount{source: source}
		k.counts[source] = c
	}
	if code == engine.InvalidAdminKey {
		c.admin++
	} else {
		c.platform++
	}
	if k.flush == nil {
		k.flush = time.AfterFunc(k.every, k.say)
	}
}

// say logs what was counted.
func (k *wrongKeys) say() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sayLocked()
}

func (k *wrongKeys) sayLocked() {
	all := slices.SortedFunc(maps.Values(k.counts), func(a, b *wrongCount) int {
		return cmp.Or(cmp.Compare(b.admin+b.platform, a.admin+a.platform), cmp.Compare(a.source, b.source))
	})
	if len(all) > loggedSources {
		rest := &wrongCount{source: otherSources}
		for _, c := range all[loggedSources:] {
			rest.platform, rest.admin = rest.platform+c.platform, rest.admin+c.admin
		}
		all = append(all[:loggedSources:loggedSources], rest)
	}
	for _, c := range all {
		k.log.Warn("calls with wrong keys in the last minute", "source", c.source, "platform_key", c.platform, "admin_key", c.admin)
	}
	clear(k.counts)
	k.flush = nil
}

// close logs what was counted last.
func (k *wrongKeys) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.flush != nil {
		k.flush.Stop()
	}
	k.closed = true
	k.sayLocked()
}
