package boot

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// Detection is who reports that an engine is usable (ORCH_BOOT_DETECTION).
type Detection string

const (
	// ByProbe means that the service asks the engine.
	ByProbe Detection = "probe"
	// ByConsul means the engine's check in Consul, and Nomad. The service never connects to
	// engines.
	ByConsul Detection = "consul"
	// ByEither means that the service asks the engine, and what Consul reports counts if the engine's
	// address accepts no connection.
	ByEither Detection = "either"
)

const (
	// consulAfter is how long an engine is only probed before Consul is asked, too: a check
	// seldom runs earlier, and most boots end before.
	consulAfter = time.Second
	// consulEvery is the interval of asking Consul about one engine.
	consulEvery = 500 * time.Millisecond
	// reachWithin is the time limit for a connection to an engine whose check passes. A lost
	// packet is repeated several times within it (hedged).
	reachWithin = 2 * time.Second
	// reachedWithin is how long a connection to a node shows that the service reaches its
	// engines: one that accepts no connection then has failed, whatever Consul knows, whose
	// checks can be older than the failure.
	reachedWithin = 10 * time.Minute
	// unreachedFor is how long every connection to a node must have failed before what
	// Consul knows about its engines is as good as a response: longer than Nomad and Consul
	// need to notice a dead node, and an engine's check to become critical with the default
	// settings (90 s).
	unreachedFor = 2 * time.Minute
)

// Catalog is what Consul knows about the processes of engines.
type Catalog interface {
	// InstanceOf returns the service of an allocation. registry.ErrNotFound.
	InstanceOf(ctx context.Context, service, allocID string) (*registry.Instance, error)
}

// Process is a process of an engine.
type Process struct {
	URL     string
	JobID   string // also the name of its service
	AllocID string
	// Old reports that the process, or an earlier one of its allocation, may have run
	// before somebody waits for it, so that its check can have passed before.
	Old bool
	// Signalled reports that a running process gets new keys, so that what Consul knows of
	// an old one may be an earlier key.
	Signalled bool
}

// Detector learns about engines in the way that the operator has set.
type Detector struct {
	*Boots
	By      Detection
	catalog Catalog
	starts  *Starts
}

// NewDetector returns a Detector that probes with p.
func NewDetector(by Detection, p *Prober, catalog Catalog, starts *Starts) *Detector {
	return &Detector{NewBoots(p), by, catalog, starts}
}

// Secondhand is the error about an engine that only Consul reports on. Settled: the check
// is critical. Otherwise Consul does not know whether the engine can serve.
type Secondhand struct {
	error
	Settled bool
}

func (s *Secondhand) Unwrap() error { return s.error }

// AwaitUsable waits until an engine is usable, and returns who reported that: ByProbe or
// ByConsul, which proves no key. Otherwise it is like Boots.AwaitUsable.
func (d *Detector) AwaitUsable(ctx context.Context, p Process, by Proof, kind *Kind) (Detection, error) {
	if d.By == ByConsul {
		return ByConsul, d.awaitPassing(ctx, p, by)
	}
	ctx, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	type result struct {
		by  Detection
		err error
	}
	results := make(chan result, 2)
	waiting.Go(func() {
		d.starts.Await(ctx, p.JobID, 0)
		results <- result{ByProbe, d.Boots.AwaitUsable(ctx, p.URL, by, kind)}
	})
	if d.By == ByEither {
		waiting.Go(func() {
			if pause.For(ctx, consulAfter) {
				results <- result{ByConsul, d.awaitUnreached(ctx, p, by)}
			}
		})
	}
	first := <-results
	return first.by, first.err
}

// awaitUnreached waits until Consul reports that an engine can serve, and the service
// cannot connect to it: if it can, the probes decide, which also prove the key. The
// check of an old process counts only on a node that the service has not reached lately.
func (d *Detector) awaitUnreached(ctx context.Context, p Process, by Proof) error {
	for {
		if err := d.awaitPassing(ctx, p, by); err != nil {
			return err
		}
		stale := p.Old && d.reachedLately(p.URL)
		if !stale && !d.Reaches(ctx, p.URL, reachWithin) && ctx.Err() == nil {
			return nil
		}
		if !pause.For(ctx, reachWithin) {
			return ctx.Err()
		}
	}
}

// awaitPassing waits until Consul reports that the process of an allocation can serve, and
// that it was started with the key, and Nomad reports that it runs.
func (d *Detector) awaitPassing(ctx context.Context, p Process, by Proof) error {
	for {
		i, err := d.catalog.InstanceOf(ctx, p.JobID, p.AllocID)
		if err == nil && i.Standing == registry.Passing && by.Reported() &&
			(by.Key == "" || i.KeyChecksum == "" || p.Old && p.Signalled || i.KeyChecksum == secrets.Checksum(by.Key)) {
			return nil
		}
		if !pause.For(ctx, consulEvery) {
			return ctx.Err()
		}
	}
}

// Health checks once whether an engine can serve. *Unable, *Secondhand.
func (d *Detector) Health(ctx context.Context, p Process) error {
	_, err := d.ask(ctx, p, d.reachedLately, func() (bool, error) { return false, d.Of(p.JobID).Health(ctx, p.URL) })
	return err
}

// Serves is like Health, for an engine that is to be given to a user: Consul counts only if
// its node has been out of reach for a while. A probe takes no longer than within.
func (d *Detector) Serves(ctx context.Context, p Process, within time.Duration) error {
	_, err := d.ask(ctx, p, d.maybeReached, func() (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		return false, d.Of(p.JobID).Health(ctx, p.URL)
	})
	return err
}

// Busy checks whether an engine is working between requests. What Consul knows about that
// can be minutes old (its agents' check_update_interval), and counts only if the engine's
// node has been out of reach for a while.
func (d *Detector) Busy(ctx context.Context, p Process) (busy bool, err error) {
	return d.ask(ctx, p, d.maybeReached, func() (bool, error) { return d.Of(p.JobID).Busy(ctx, p.URL) })
}

// ask probes an engine, and asks Consul if there is no connection and in does not say that
// the engine's node is within reach.
func (d *Detector) ask(ctx context.Context, p Process, in func(url string) bool, probe func() (bool, error)) (busy bool, err error) {
	if d.By != ByConsul {
		var unreached *Unreached
		busy, err = probe()
		if d.By == ByProbe || !errors.As(err, &unreached) || in(p.URL) {
			return busy, err
		}
	}
	i, ierr := d.catalog.InstanceOf(ctx, p.JobID, p.AllocID)
	if ierr != nil {
		return false, &Secondhand{fmt.Errorf("read its check in Consul: %w", errors.Join(ierr, err)), false}
	}
	return readStanding(i)
}

// reachedLately reports whether the service connected to an engine on the same node.
func (d *Detector) reachedLately(url string) bool {
	return d.dialer.reachedLately(addressOf(url), reachedWithin)
}

// maybeReached reports whether the service may be able to connect to engines on the same
// node.
func (d *Detector) maybeReached(url string) bool {
	return d.dialer.failingFor(addressOf(url)) < unreachedFor
}

// readStanding interprets what Consul knows about an engine.
func readStanding(i *registry.Instance) (busy bool, err error) {
	status, body := readOutput(i.Output)
	busy, err = readHealth(status, strings.NewReader(body))
	switch i.Standing {
	case registry.Passing:
		if err != nil && body != "" { // Consul shortens long outputs
			busy = strings.Contains(strings.ReplaceAll(body, " ", ""), `"busy":true`)
		}
		return busy, nil
	case registry.Critical:
		if err == nil { // an earlier output
			err = errors.New("its check in Consul is critical")
		}
		return false, &Secondhand{err, true}
	}
	return false, &Secondhand{fmt.Errorf("its check in Consul is %s", i.Standing), false}
}

// checkOutput matches what Consul's HTTP check stores about a response (CheckHTTP in its
// agent/checks).
var checkOutput = regexp.MustCompile(`(?s)^HTTP GET \S+: (\d{3})[^\n]*? Output: (.*)$`)

// readOutput returns status and body of the response in a check's output; 0: there was no
// response, or agents do not store it (discard_check_output).
func readOutput(output string) (status int, body string) {
	if m := checkOutput.FindStringSubmatch(output); m != nil {
		status, _ = strconv.Atoi(m[1])
		return status, m[2]
	}
	return 0, ""
}
