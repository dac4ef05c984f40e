package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/nomad/api"
)

// TestThrottle reads a list of five pages that take a second each.
func TestThrottle(t *testing.T) {
	const pages = 5
	c := &Cluster{pageSize: pageSize}
	read := func(at *int) func(*api.QueryOptions) (*api.QueryMeta, error) {
		return func(*api.QueryOptions) (*api.QueryMeta, error) {
			time.Sleep(time.Second)
			*at++
			meta := &api.QueryMeta{LastIndex: uint64(*at)}
			if *at < pages {
				meta.NextToken = "more"
			}
			return meta, nil
		}
	}
	for name, tc := range map[string]struct {
		throttle Throttle
		release  time.Duration // when the throttle is closed
		want     time.Duration
	}{
		"Unthrottled": {throttle: Unthrottled, want: pages * time.Second},
		"Throttled":   {want: (pages + (pages-1)*throttleBy) * time.Second},
		// Two pages with pauses, then three without.
		"Released":           {release: 10 * time.Second, want: 13 * time.Second},
		"ReleasedInAPause":   {release: 8 * time.Second, want: 11 * time.Second},
		"ReleasedAfterwards": {release: time.Hour, want: (pages + (pages-1)*throttleBy) * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				throttle := tc.throttle
				if tc.release > 0 {
					release := make(chan struct{})
					defer time.AfterFunc(tc.release, func() { close(release) }).Stop()
					throttle = release
				}
				var at int
				began := time.Now()
				index, err := c.pages(t.Context(), throttle, &api.QueryOptions{}, read(&at))
				if took := time.Since(began); err != nil || index != 1 || at != pages || took != tc.want {
					t.Errorf("%d pages up to index %d after %s, %v; want all up to 1 after %s", at, index, took, err, tc.want)
				}
			})
		})
	}
	t.Run("GivenUp", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			var at int
			began := time.Now()
			if _, err := c.pages(ctx, nil, &api.QueryOptions{}, read(&at)); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 3*time.Second {
				t.Errorf("%v after %s", err, time.Since(began))
			}
		})
	})
}
