package server_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestBootsHoldTheirPlaces: a boot counts for its product's limit until it ends, even if
// nobody waits for its response any more, or nobody ever did.
func TestBootsHoldTheirPlaces(t *testing.T) {
	t.Parallel()
	t.Run("HungUp", func(t *testing.T) { testBootsHoldTheirPlaces(t, "") })
	t.Run("RespondAsync", func(t *testing.T) { testBootsHoldTheirPlaces(t, "respond-async") })
}

func testBootsHoldTheirPlaces(t *testing.T, prefer string) {
	a := startAPI(t, "ORCH_VOLUME_POOL=0") // a boot waits seconds for its volume
	const atOnce = 16                      // firstBoots in scheduler
	booting := func() float64 {
		total, _ := a.call(t, "GET", "/engines?status=provisioning&limit=1", "").body["total"].(float64)
		return total
	}
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	var calls sync.WaitGroup
	for i := range atOnce {
		req, err := http.NewRequestWithContext(ctx, "POST", a.url+"/engines/provision", strings.NewReader(fmt.Sprintf(`{"user_id": "u%d"}`, i)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Platform-Key", a.key)
		if prefer != "" {
			req.Header.Set("Prefer", prefer)
		}
		calls.Go(func() {
			resp, err := a.http.Do(req)
			if err == nil {
				_ = resp.Body.Close()
			}
			if prefer != "" && (err != nil || resp.StatusCode != http.StatusAccepted) {
				t.Errorf("provisioned with %s: %v, %v", prefer, resp, err)
			}
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); booting() < atOnce; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%v boot", booting())
		}
	}
	if prefer == "" {
		hangUp()
	}
	calls.Wait()
	done := make(chan answer, 1)
	go func() {
		got := a.call(t, "POST", "/engines/provision", `{"user_id": "late"}`)
		// On a busy machine Nomad may not respond in time.
		for tries := 0; tries < 20 && got.status == 503 && strings.Contains(got.text, "cannot be reached"); tries++ {
			time.Sleep(time.Second)
			got = a.call(t, "POST", "/engines/provision", `{"user_id": "late"}`)
		}
		done <- got
	}()
	for {
		if n := booting(); n > atOnce {
			t.Errorf("%v boot", n)
		}
		select {
		case got := <-done:
			got.want(t, 200, "")
			return
		case <-tick.C:
		}
	}
}
