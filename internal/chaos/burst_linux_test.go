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
	// burstSize is how many calls come at once while a store is paused.
	burstSize = 300
	// burstLoad is what a busy machine needs for so many, beside all else.
	burstLoad = 5 * time.Second
)

// burst is calls that come at once while a store answers nothing.
type burst struct {
	calls  []*call
	within time.Duration // in which each has to be answered
	wait   sync.WaitGroup
}

// bursts are what is paused under a burst: the replica that asks it, and a call's time
// limit to it.
var bursts = map[string]struct {
	replica int
	limit   time.Duration
}{
	"consul-client-3": {0, 5 * time.Second},
	"nomad-server-1":  {1, 10 * time.Second},
	"vault":           {0, 5 * time.Second},
}

// gather pauses a store, and sends its calls. Their users are new, and their product may
// have no engine: so nothing is left of them, as the end of the run sees.
func (in *injector) gather(ctx context.Context, store string) error {
	at, known := bursts[store]
	if !known {
		return fmt.Errorf("no replica asks %s alone", store)
	}
	// What is left of the fault before would be blamed on this one.
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

// disperse lets the store go on, and says which calls were not answered as they should.
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
	in.log("%d of %d calls were refused while %s was paused, the slowest was answered after %s", refused, burstSize, store, slowest.Round(time.Millisecond))
	in.burst = nil
	return errors.Join(errs[:min(len(errs), 5)]...)
}
