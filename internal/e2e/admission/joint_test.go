package admission

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// The quota counts engines of all replicas, however provisions and destroys race on them.
func TestJointQuota(t *testing.T) {
	t.Parallel()
	const most = 6
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_VOLUME_POOL": "3"})
	prefix := "replicas-" + t.Name() + "/"
	c, s := all[0].Product(t, map[string]any{"max_engines": most}), harness.OpenStores(t, harness.Shared)
	ctx := t.Context()
	provision := func(i int) error {
		return harness.ProvisionSurely(ctx, harness.At(c, all[i%2]), fmt.Sprint("user-", i))
	}
	got := harness.Outcomes(4*most, provision)
	if got["ok"] != most || got["429 QUOTA_EXCEEDED"] != 3*most {
		t.Fatalf("got %v, want %d ok and %d × 429 QUOTA_EXCEEDED", got, most, 3*most)
	}
	// Each place that a destroy frees is taken once.
	got = harness.Outcomes(4*most, func(i int) error {
		return harness.ErrOf(harness.At(c, all[(i+1)%2]).Destroy(ctx, fmt.Sprint("user-", i)))
	})
	// A destroy that was sent again may find that it is done.
	if got["ok"] > most || got["ok"]+got["404 ENGINE_NOT_FOUND"] != 4*most {
		t.Fatalf("destroys: got %v", got)
	}
	if got := s.Census(prefix); got["rows"] != 0 || got["quota"] != 0 {
		t.Errorf("after the destroys the registry holds %v", got)
	}
	got = harness.Outcomes(2*most, func(i int) error {
		_, err := harness.Admit(ctx, harness.At(c, all[i%2]), fmt.Sprint("user-", i/2), true, false) // each user on both replicas
		return err
	})
	if got["ok"] != 2*most {
		t.Fatalf("admits of %d users: got %v", most, got)
	}
	if got := s.Census(prefix); got["rows"] != most || got["quota"] != most {
		t.Errorf("the registry holds %v", got)
	}
	for i := range most {
		if _, err := c.Destroy(ctx, fmt.Sprint("user-", i)); err != nil {
			t.Error(err)
		}
	}
}

const (
	rotatedEngines = 10
	rotations      = 100 // of each engine
)

// A thousand rotations on two replicas, with continuous admits on both: an admit that began
// after the response to a rotation never returns an earlier key.
func TestRotatedKeysAreNeverAnswered(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_ENGINE_KEY_RELOAD": "signal", "ORCH_ENGINE_IMAGE": "reference-engine.reload", "ORCH_VOLUME_POOL": "5"})
	c := all[0].Product(t, nil)
	ctx := t.Context()
	engines := make([]*rotated, rotatedEngines)
	var boots sync.WaitGroup
	for i := range engines {
		engines[i] = &rotated{user: fmt.Sprint("user-", i)}
		boots.Go(func() {
			e, err := c.Provision(ctx, engines[i].user, "")
			if err != nil {
				t.Error(err)
				return
			}
			engines[i].answered(e.APIKey)
		})
	}
	if boots.Wait(); t.Failed() {
		t.FailNow()
	}

	var rotating, loading sync.WaitGroup
	done := make(chan struct{})
	var admits atomic.Int64
	for i := range 16 {
		loading.Go(func() {
			for n := i; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if !engines[n%rotatedEngines].admit(t, harness.At(c, all[n/rotatedEngines%2])) {
					return
				}
				admits.Add(1)
			}
		})
	}
	for _, e := range engines {
		rotating.Go(func() {
			for i := range rotations {
				key, err := harness.At(c, all[i%2]).RotateKey(ctx, e.user)
				if err != nil {
					t.Errorf("%s: %v", e.user, err)
					return
				}
				e.answered(key)
				if !e.admit(t, harness.At(c, all[(i+1)%2])) {
					return
				}
			}
		})
	}
	rotating.Wait()
	close(done)
	loading.Wait()
	t.Logf("%d rotations under %d admits", rotatedEngines*rotations, admits.Load())
	for _, e := range engines {
		for _, r := range all {
			if got, err := harness.At(c, r).Engine(ctx, e.user); err != nil || e.keys[got.APIKey] != len(e.keys) {
				t.Errorf("%s: GET returns key %d of %d, %v", e.user, e.keys[got.APIKey], len(e.keys), err)
			}
		}
		if _, err := c.Destroy(ctx, e.user); err != nil {
			t.Error(err)
		}
	}
}

// rotated is an engine with all keys that were returned for it, by their number from 1 on.
type rotated struct {
	user string
	mu   sync.Mutex
	keys map[string]int
}

func (e *rotated) answered(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.keys == nil {
		e.keys = map[string]int{}
	}
	e.keys[key] = len(e.keys) + 1
}

// admit admits the engine's user, and reports whether its key was not outdated when the
// call began. A key that no rotation has returned yet is a newer one.
func (e *rotated) admit(t *testing.T, c *client.Client) bool {
	e.mu.Lock()
	before := len(e.keys)
	e.mu.Unlock()
	a, err := harness.Admit(t.Context(), c, e.user, false, false)
	if err != nil || !a.Admitted {
		t.Errorf("%s: %+v, %v", e.user, a, err)
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if number, known := e.keys[a.Engine.APIKey]; known && number < before {
		t.Errorf("%s: got key %d after a rotation had returned key %d", e.user, number, before)
		return false
	}
	return true
}
