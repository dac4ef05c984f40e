package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/service"
	"github.com/septemberai/orch/internal/testpg"
)

// together makes n calls concurrently, and returns their responses and the longest
// duration.
func (a *api) together(t *testing.T, n int, call func(i int) answer) (answers []answer, slowest time.Duration) {
	t.Helper()
	answers = make([]answer, n)
	took := make([]time.Duration, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			began := time.Now()
			answers[i] = call(i)
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	for _, d := range took {
		slowest = max(slowest, d)
	}
	return answers, slowest
}

// away fails unless all responses report an unavailable store.
func away(t *testing.T, answers []answer) {
	t.Helper()
	for _, got := range answers {
		got.want(t, http.StatusServiceUnavailable, "BACKEND_UNAVAILABLE")
		if got.header.Get("Retry-After") == "" {
			t.Fatal("503 without Retry-After")
		}
	}
}

// TestPausedStores: while a store does not respond, calls return within the time limit of
// one call to it, however many there are, and at once when that is known. Everything works
// as soon as the store resumes.
func TestPausedStores(t *testing.T) {
	testpg.Need(t)
	database, err := testpg.New()
	t.Cleanup(database.Stop)
	if err != nil {
		t.Fatal(err)
	}
	a := startAPI(t, "ORCH_DATABASE_URL="+database.URL("postgres"))
	const n = 200
	// The time that a busy machine needs for so many concurrent calls.
	const load = 5 * time.Second
	admit := func(i int) answer {
		return a.call(t, "POST", fmt.Sprintf("/engines/u%d/admit", i), "{}")
	}
	provision := func(i int) answer {
		return a.call(t, "POST", "/engines/provision", fmt.Sprintf(`{"user_id": "u%d"}`, i))
	}
	admit(0).want(t, 200, "") // its product is cached afterwards
	of := func(c devstack.Component) [2]func() error {
		return [2]func() error{func() error { return a.stack.Pause(c) }, func() error { return a.stack.Resume(c) }}
	}
	for _, tc := range []struct {
		store   string
		outages [2]func() error // begins and ends an outage
		call    func(i int) answer
		// The first call's time limit to the store: of an availability probe, or of a read.
		// 0: the outage is noticed before, because otherwise the first calls would trust a
		// response of the second before, and begin operations.
		limit time.Duration
	}{
		{"nomad", of(devstack.Nomad), provision, 2 * time.Second},
		{"consul", of(devstack.Consul), admit, 5 * time.Second},
		{"vault", of(devstack.Vault), provision, 0},
		{"audit", [2]func() error{database.Pause, database.Resume}, provision, audit.CallTimeout},
	} {
		t.Run(tc.store, func(t *testing.T) {
			if err := tc.outages[0](); err != nil {
				t.Fatal(err)
			}
			resume := sync.OnceFunc(func() {
				if err := tc.outages[1](); err != nil {
					t.Error(err)
				}
			})
			defer resume()
			if tc.limit > 0 {
				ready := make(chan int, 1)
				go func() {
					status := a.call(t, "GET", "/ready", "").status
					// A good response of Consul is trusted for a second.
					for until := time.Now().Add(time.Second + load); tc.store == "consul" && status == http.StatusOK && time.Now().Before(until); {
						status = a.call(t, "GET", "/ready", "").status
					}
					ready <- status
				}()
				answers, slowest := a.together(t, n, tc.call)
				if got := <-ready; tc.store == "consul" && got != http.StatusServiceUnavailable {
					t.Errorf("ready while no admit is served: %d", got)
				}
				away(t, answers)
				t.Logf("the slowest of %d took %s", n, slowest)
				if slowest > tc.limit+time.Second+load {
					t.Errorf("the slowest of %d took %s", n, slowest)
				}
			} else {
				// A response of health is cached for a second.
				for until := time.Now().Add(10 * time.Second); a.call(t, "GET", "/health", "").status != http.StatusServiceUnavailable; {
					if time.Now().After(until) {
						t.Fatal("health does not report it as unavailable")
					}
				}
			}
			answers, slowest := a.together(t, n, tc.call)
			away(t, answers)
			t.Logf("the slowest of %d more took %s", n, slowest)
			if slowest > load {
				t.Errorf("the slowest of %d took %s when %s was known to be unavailable", n, slowest, tc.store)
			}
			resume()
			began := time.Now()
			a.await(t, "/health")
			a.await(t, "/ready")
			took := time.Since(began)
			t.Logf("back after %s", took)
			if took > time.Second+load {
				t.Errorf("it took %s to notice that %s is back", took, tc.store)
			}
		})
	}
	provision(0).want(t, 200, "")
}

// TestVaultIsLostMeanwhile: Vault is paused while a provision waits for its volume. The
// caller does not then wait for the time limit of a call to Vault.
func TestVaultIsLostMeanwhile(t *testing.T) {
	t.Parallel()
	// Seen where the service writes them: a step may take less than a poll of the rows.
	atVolume, atKey, paused := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var first, then sync.Once
	a := startAPIAt(t, func(c *service.Clients) {
		c.ConsulAddr = failing(t, c.ConsulAddr, func(r *http.Request) bool {
			switch rows := written(r); {
			case bytes.Contains(rows, []byte(`"step":"volume"`)):
				first.Do(func() { close(atVolume) })
				<-paused
			case bytes.Contains(rows, []byte(`"step":"key"`)):
				then.Do(func() { close(atKey) })
			}
			return false
		})
	}, "ORCH_VOLUME_POOL=0")
	answered := make(chan answer, 1)
	go func() { answered <- a.call(t, "POST", "/engines/provision", `{"user_id": "u"}`) }()
	reached := func(step string, at chan struct{}) {
		t.Helper()
		select {
		case <-at:
		case got := <-answered:
			t.Fatalf("the provision does not reach the step %s: %d %s", step, got.status, got.text)
		}
	}
	reached("volume", atVolume)
	err := a.stack.Pause(devstack.Vault)
	close(paused)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.stack.Resume(devstack.Vault); err != nil {
			t.Error(err)
		}
	}()
	for until := time.Now().Add(time.Minute); a.call(t, "GET", "/health", "").status != http.StatusServiceUnavailable; {
		if time.Now().After(until) {
			t.Fatal("health does not report it as unavailable")
		}
	}
	reached("key", atKey)
	began := time.Now()
	got := <-answered
	took := time.Since(began)
	away(t, []answer{got})
	t.Logf("returned after %s", took)
	if took > 4500*time.Millisecond { // a call's time limit is 5 s
		t.Errorf("its caller waited %s for a Vault that is known to be unavailable", took)
	}
}

// written returns the values that a request to Consul writes in a transaction, if it is one.
func written(r *http.Request) (values []byte) {
	if r.URL.Path != "/v1/txn" {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var ops []struct{ KV struct{ Value []byte } }
	_ = json.Unmarshal(body, &ops) // if it cannot be parsed, it writes nothing
	for _, op := range ops {
		values = append(values, op.KV.Value...)
	}
	return values
}

// TestVaultIsKnownToBeAway: after the first call without a response of Vault, all calls are
// refused at once while Vault does not respond, without a request to /health.
func TestVaultIsKnownToBeAway(t *testing.T) {
	t.Parallel()
	a := startAPI(t)
	provision := func() answer { return a.call(t, "POST", "/engines/provision", `{"user_id": "u"}`) }
	if err := a.stack.Pause(devstack.Vault); err != nil {
		t.Fatal(err)
	}
	resume := sync.OnceFunc(func() {
		if err := a.stack.Resume(devstack.Vault); err != nil {
			t.Error(err)
		}
	})
	defer resume()
	const limit = 2 * time.Second // of one availability probe
	away(t, []answer{provision()})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var took []time.Duration
	for until := time.Now().Add(4 * limit); time.Now().Before(until); <-tick.C { // longer than any response is trusted
		began := time.Now()
		away(t, []answer{provision()})
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("of %d calls, half took at most %s, and the slowest %s", len(took), took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > limit/2 { // a call also asks the other stores, which a busy machine delays
		t.Errorf("half of %d calls took more than %s when Vault was known to be unavailable", len(took), median)
	}
	resume()
	for until := time.Now().Add(time.Minute); ; <-tick.C {
		got := provision()
		if got.status == http.StatusOK {
			return
		}
		if away(t, []answer{got}); time.Now().After(until) {
			t.Fatal("Vault is back, and no provision works")
		}
	}
}

// failing is a proxy to Consul that refuses some requests.
func failing(t *testing.T, to string, fails func(*http.Request) bool) string {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.Transport, proxy.ErrorLog = transport, log.New(io.Discard, "", 0) // of clients that have disconnected
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fails(r) {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close(); transport.CloseIdleConnections() })
	return srv.URL
}

// TestReadyMeansAdmitted: a replica that is ready serves an admit. A replica without a
// session must not be ready, even if Consul responds to everything else.
func TestReadyMeansAdmitted(t *testing.T) {
	var lost atomic.Bool
	a := startAPIAt(t, func(c *service.Clients) {
		c.ConsulAddr = failing(t, c.ConsulAddr, func(r *http.Request) bool {
			return lost.Load() && strings.HasPrefix(r.URL.Path, "/v1/session/")
		})
	})
	a.call(t, "POST", "/engines/provision", `{"user_id": "u"}`).want(t, 200, "")
	lost.Store(true)
	for deadline := time.Now().Add(time.Minute); ; {
		ready := a.call(t, "GET", "/ready", "")
		admitted := a.call(t, "POST", "/engines/u/admit", "{}")
		if ready.status == 200 && admitted.status != 200 {
			// Its session may have ended between the two calls.
			if again := a.call(t, "GET", "/ready", ""); again.status == 200 {
				t.Fatalf("ready, but an admit returns %d %s", admitted.status, admitted.text)
			}
		}
		if ready.status != 200 && admitted.status != 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it has its session for a minute without renewing it")
		}
	}
	lost.Store(false)
	a.await(t, "/ready")
	a.call(t, "POST", "/engines/u/admit", "{}").want(t, 200, "")
}

// TestReadyAsksSeldom: however often readiness is requested, Consul is read once per
// second.
func TestReadyAsksSeldom(t *testing.T) {
	var reads atomic.Int64
	a := startAPIAt(t, func(c *service.Clients) {
		c.ConsulAddr = failing(t, c.ConsulAddr, func(r *http.Request) bool {
			if r.Method == http.MethodGet && r.URL.Path == "/v1/kv/orch/deployment" && !r.URL.Query().Has("index") {
				reads.Add(1)
			}
			return false
		})
	})
	const n = 500
	began, before := time.Now(), reads.Load()
	answers, _ := a.together(t, n, func(int) answer { return a.call(t, "GET", "/ready", "") })
	good := 0
	for _, got := range answers {
		if got.status == 503 { // this machine is busy, and Consul was not read in time
			got.want(t, 503, "BACKEND_UNAVAILABLE")
			continue
		}
		got.want(t, 200, "")
		good++
	}
	if good == 0 {
		t.Error("it was never ready")
	}
	// The service itself reads that record, too.
	if most := 10 + 2*int64(time.Since(began)/time.Second); reads.Load()-before > most {
		t.Errorf("%d questions were %d to Consul, want %d or fewer", n, reads.Load()-before, most)
	}
	t.Logf("%d questions to Consul", reads.Load()-before)
}
