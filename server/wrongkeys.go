package server

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

const (
	// wrongKeysEvery is the interval of the log lines about wrong keys, and of attempts to
	// write an audit entry about them.
	wrongKeysEvery = time.Minute
	// wrongKeysAudited is the minimum time between two audit entries about wrong keys: 144 a
	// day, however many calls there are.
	wrongKeysAudited = 10 * time.Minute
	// loggedSources and auditedSources are how many sources, those with the most wrong keys,
	// get a line, and are named in an audit entry.
	loggedSources, auditedSources = 20, 5
	// auditWithin limits the write of an audit entry.
	auditWithin = 5 * time.Second
)

// wrongKeys counts calls with wrong keys by the address that they come from. It logs the
// counts once a minute, because a line per call would hide everything else in the log, and
// writes them to the audit log, in few entries, because a caller without a key must not fill
// its disk.
type wrongKeys struct {
	log    hclog.Logger
	record func(ctx context.Context, since time.Time, counts map[string]any) error
	every  time.Duration

	mu        sync.Mutex
	throttle  *throttle
	logged    tally // since the last log lines
	audited   tally // since the last audit entry
	since     time.Time
	nextAudit time.Time
	flush     *time.Timer // nil: nothing was counted
	writing   sync.WaitGroup
	closed    bool
}

func newWrongKeys(log hclog.Logger, record func(ctx context.Context, since time.Time, counts map[string]any) error) *wrongKeys {
	return &wrongKeys{log: log, record: record, every: wrongKeysEvery, throttle: newThrottle(0)}
}

// limit sets how many calls with wrong keys a source may make per minute; 0: any number.
func (k *wrongKeys) limit(perMinute int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.throttle = newThrottle(perMinute)
}

// note counts a response, if it is about a wrong key, and returns the error of the response:
// e, or TOO_MANY_WRONG_KEYS.
func (k *wrongKeys) note(r *http.Request, e *engine.Error) *engine.Error {
	if e.Code != engine.InvalidPlatformKey && e.Code != engine.InvalidAdminKey {
		return e
	}
	source, now := sourceOf(r), time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	wait := k.throttle.wrong(source, now)
	if !k.closed {
		one := wrongCount{}
		if e.Code == engine.InvalidAdminKey {
			one.admin = 1
		} else {
			one.platform = 1
		}
		if wait > 0 {
			one.refused = 1
		}
		name := sourceName(source)
		k.logged.add(name, one)
		if len(k.audited) == 0 {
			k.since = now
		}
		k.audited.add(name, one)
		if k.flush == nil {
			k.flush = time.AfterFunc(k.every, k.say)
		}
	}
	if wait <= 0 {
		return e
	}
	return &engine.Error{
		Code: engine.TooManyWrongKeys, RetryAfter: wait,
		Message: fmt.Sprintf("%s; there were too many calls with wrong keys from this address", e.Message),
	}
}

// say logs what was counted, and audits it, if that is due.
func (k *wrongKeys) say() {
	k.mu.Lock()
	k.sayLocked()
	due := !k.closed && len(k.audited) > 0 && !time.Now().Before(k.nextAudit)
	if due {
		k.writing.Add(1)
	}
	k.mu.Unlock()
	if due {
		defer k.writing.Done()
		k.audit()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.flush = nil
	if !k.closed && len(k.logged)+len(k.audited) > 0 {
		k.flush = time.AfterFunc(k.every, k.say)
	}
}

func (k *wrongKeys) sayLocked() {
	for _, c := range k.logged.most(loggedSources) {
		k.log.Warn("calls with wrong keys in the last minute", "source", c.source, "platform_key", c.platform, "admin_key", c.admin, "refused", c.refused)
	}
	k.logged = nil
}

// audit writes an audit entry. If that fails, its counts are in the next one.
func (k *wrongKeys) audit() {
	k.mu.Lock()
	counts, since := k.audited, k.since
	k.audited = nil
	k.mu.Unlock()
	if len(counts) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), auditWithin)
	defer cancel()
	err := k.record(ctx, since, counts.details())
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.nextAudit = time.Now().Add(wrongKeysAudited)
		return
	}
	k.log.Debug("cannot write to the audit log how many calls had wrong keys; retrying", "error", err)
	for _, c := range counts {
		k.audited.add(c.source, *c)
	}
	k.since = since
}

// close logs and audits what was counted last.
func (k *wrongKeys) close() {
	k.mu.Lock()
	if k.flush != nil {
		k.flush.Stop()
	}
	closed := k.closed
	k.closed = true
	k.sayLocked()
	k.mu.Unlock()
	k.writing.Wait()
	if !closed {
		k.audit()
	}
}
