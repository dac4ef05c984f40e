package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/internal/devstack"
)

const (
	// burstSize is the number of concurrent calls while a store is paused.
	burstSize = 300
	// burstLoad is the time that a busy machine needs for so many calls, besides its other
	// work.
	burstLoad = 5 * time.Second
)

// burst is a number of concurrent calls while a store does not respond.
type burst struct {
	calls  []*call
	within time.Duration // the time limit of each call
	wait   sync.WaitGroup
}

// bursts maps each store that is paused to the replica that uses it, and to the time limit
// of its calls.
var bursts = map[string]struct {
	replica int
	limit   time.Duration
}{
	"consul-client-3": {0, 5 * time.Second},
	"nomad-server-1":  {1, 10 * time.Second},
	"vault":           {0, 5 * time.Second},
}

// gather pauses a store, and sends the calls. Their users are new, and their product may
// have no engines, so that nothing may remain, which the end of the run checks.
func (in *injector) gather(ctx context.Context, store string) error {
	at, known := bursts[store]
	if !known {
		return fmt.Errorf("no replica uses only %s", store)
	}
	// Otherwise effects of the previous fault would be attributed to this one.
	if err := in.rig.awaitReplicas(ctx); err != nil {
		return err
	}
	if err := in.rig.Pause(devstack.Component(store)); err != nil {
		return err
	}
	p := in.rig.products[slices.IndexFunc(in.rig.products, func(p *product) bool { return p.Slug == crowded })]
	in.burst = &burst{within: at.limit + time.Second + burstLoad}
	for i := range burstSize {
		c := &call{kind: []kind{admit, provision}[i%2], product: p.Slug, user: fmt.Sprintf("%s user %d of fault %d", p.Slug, i, in.counts["burst"])}
		in.burst.calls = append(in.burst.calls, c)
		in.burst.wait.Go(func() { in.load.do(ctx, p, c, at.replica) })
	}
	return nil
}

// disperse resumes the store, and returns which calls did not get the right response.
func (in *injector) disperse(store string) error {
	errs := []error{in.rig.Resume(devstack.Component(store))}
	if in.burst == nil {
		return errors.Join(errs...)
	}
	in.burst.wait.Wait()
	slowest, refused := time.Duration(0), 0
	for _, c := range in.burst.calls {
		took, right := c.ended.Sub(c.began), c.answer.ok() || c.answer.code == "QUOTA_EXCEEDED"
		if c.answer.status == http.StatusServiceUnavailable {
			refused++
			right = c.answer.again
		}
		if slowest = max(slowest, took); took > in.burst.within || !right {
			errs = append(errs, fmt.Errorf("with %s paused: %s", store, c))
		}
	}
	in.log("%d of %d calls were refused while %s was paused, the slowest took %s", refused, burstSize, store, slowest.Round(time.Millisecond))
	in.burst = nil
	return errors.Join(errs[:min(len(errs), 5)]...)
}
