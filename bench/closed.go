package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
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

// directly makes the three calls by which a product would learn by itself where
// an engine runs, whether it is healthy, and its key.
func (r *rig) directly(ctx context.Context, engineID string) error {
	job := "engine-" + engineID
	for _, u := range []string{
		r.stack.NomadAddr + "/v1/job/" + job + "/allocations", r.stack.ConsulAddr + "/v1/health/service/" + job, r.stack.VaultAddr + "/v1/orch/data/engines/" + engineID,
	} {
		if err := plainCall(ctx, http.MethodGet, u, "X-Vault-Token", r.stack.VaultRootToken); err != nil {
			return err
		}
	}
	return nil
}

// admitOnce admits a user without decoding the answer, as directly does not.
func (s *service) admitOnce(ctx context.Context, user string) error {
	return plainCall(ctx, http.MethodPost, s.BaseURL+"/engines/"+url.PathEscape(user)+"/admit", "X-Platform-Key", s.PlatformKey)
}

// plain keeps the connections of all callers.
var plain = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}

func plainCall(ctx context.Context, method, u, header, value string) error {
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return err
	}
	req.Header.Set(header, value)
	resp, err := plain.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %d", req.URL.Path, resp.StatusCode)
	}
	return nil
}

// addClosed puts admits beside the direct calls.
func (rep *report) addClosed(admits, direct closedResult) {
	const against = "three direct calls"
	name := fmt.Sprintf("%d callers without a pause for %s", callers, closedTime)
	rate := func(v float64) *summary { return &summary{N: 1, P50: v, P95: v, P99: v} }
	times, enough := admits.perSecond/direct.perSecond, admits.perSecond >= 5000
	tenfold := times >= 10
	rep.Figures = append(rep.Figures,
		figure{Name: "admits, " + name, Unit: "1/s", Orch: rate(admits.perSecond), Against: against, Floor: rate(direct.perSecond), Ratio: &times, Target: "≥ 10 ×", Reached: &tenfold},
		figure{Name: "— the same", Unit: "1/s", Orch: rate(admits.perSecond), Target: "≥ 5000/s", Reached: &enough})
	mine, theirs := summarize(admits.latency), summarize(direct.latency)
	tail := mine.P99 / theirs.P99
	f := figure{Name: "— of each admit", Unit: "ms", Orch: &mine, Against: against, Floor: &theirs}
	f.judge(tail, 0.2, "p99 ≤ %g ×")
	rep.Figures = append(rep.Figures, f)
	rep.Notes = append(rep.Notes, fmt.Sprintf("p99 of an admit against that of the %s: %.2f ×.", against, tail))
}
