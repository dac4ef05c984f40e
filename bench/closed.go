package main

import (
	"context"
	"net/http"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/registry"
)

const (
	// callers is how many call at the same time, each as soon as it has its
	// answer.
	callers = 32
	// closedTime is how long they do.
	closedTime = 5 * time.Second
)

// closedResult is what callers without a pause measured.
type closedResult struct {
	perSecond float64
	latency   []float64 // of each call, in milliseconds
}

// closedLoop has callers make calls for closedTime; the first that fails ends it.
func closedLoop(ctx context.Context, one func(ctx context.Context, n int) error) (res closedResult, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var wg sync.WaitGroup
	began := time.Now()
	for caller := range callers {
		wg.Go(func() {
			var mine []float64
			for n := caller; time.Since(began) < closedTime && ctx.Err() == nil; n += callers {
				at := time.Now()
				if err := one(ctx, n); err != nil {
					cancel(err)
					return
				}
				mine = append(mine, millis(time.Since(at)))
			}
			mu.Lock()
			defer mu.Unlock()
			res.latency = append(res.latency, mine...)
		})
	}
	wg.Wait()
	res.perSecond = float64(len(res.latency)) / time.Since(began).Seconds()
	return res, context.Cause(ctx)
}

// apis are the official clients by which a product would learn by itself where
// an engine runs, whether it is healthy, and its key; one pool of connections
// holds those of all callers.
type apis struct {
	nomad  *nomad.Client
	consul *consul.Client
	vault  *vault.Client
}

func newAPIs(stack *devstack.Stack) (a *apis, err error) {
	pool := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	a = &apis{}
	if a.nomad, err = nomad.NewClient(&nomad.Config{Address: stack.NomadAddr, HttpClient: pool}); err != nil {
		return nil, err
	}
	if a.consul, err = consul.NewClient(&consul.Config{Address: stack.ConsulAddr, HttpClient: pool}); err != nil {
		return nil, err
	}
	cfg := vault.DefaultConfig()
	cfg.Address, cfg.HttpClient = stack.VaultAddr, pool
	if a.vault, err = vault.NewClient(cfg); err == nil {
		a.vault.SetToken(stack.VaultRootToken)
	}
	return a, err
}

// ask makes the three calls that an admit replaces.
func (a *apis) ask(ctx context.Context, engineID string) error {
	job := registry.JobID(engineID)
	q := (&nomad.QueryOptions{Params: map[string]string{"resources": "true"}}).WithContext(ctx)
	if _, _, err := a.nomad.Jobs().Allocations(job, false, q); err != nil {
		return err
	}
	if _, _, err := a.consul.Health().Service(job, "", true, (&consul.QueryOptions{}).WithContext(ctx)); err != nil {
		return err
	}
	_, err := a.vault.KVv2("orch").Get(ctx, "engines/"+engineID)
	return err
}
