//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > want/500+0.001 {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func TestSummarize(t *testing.T) {
	var values []float64
	for i := range 1000 {
		values = append(values, float64((i*7919)%1000+1)) // 1 to 1000 in any order
	}
	s := summarize(values)
	near(t, "p50", s.p50, 500)
	near(t, "p95", s.p95, 950)
	near(t, "p99", s.p99, 990)
	few := summarize([]float64{3, 0.2, 1, 7200_000})
	near(t, "p50 of four", few.p50, 1)
	near(t, "p99 of four, cut to an hour", few.p99, 3600_000)
	if s.n != 1000 || few.n != 4 || summarize(nil).n != 0 {
		t.Errorf("counts are %d, %d and %d", s.n, few.n, summarize(nil).n)
	}
}

func TestOwnShare(t *testing.T) {
	rec := recorder{}
	rec.operation("destroy", &stopwatch{total: 240, steps: map[string]float64{"drain": 190, "scale-down": 4, "volume": 5, "purge": 2, "rows": 8, "key": 1}}, true)
	rec.operation("by hand", &stopwatch{total: 200, steps: map[string]float64{"drain": 200}}, false)
	near(t, "own share", rec.summary(ownOf("destroy")).p50, 240-190-4-5-2)
	near(t, "between the steps", rec.summary(stepOf("destroy", betweenSteps)).p50, 240-190-4-5-2-8-1)
	if len(rec[ownOf("by hand")]) != 0 {
		t.Error("what is done by hand has a share of orch")
	}
}

func TestSteps(t *testing.T) {
	got := stepsOf(map[string]any{"boot_ms": 12.5, "ms": 20.0, "kind_ms": "text", "user_id": "u"})
	if len(got) != 1 || got["boot"] != 12.5 {
		t.Errorf("steps are %v", got)
	}
	rec, rep := recorder{}, newReport()
	rec.operation("start", &stopwatch{total: 10, steps: map[string]float64{"rows": 2, "boot": 7}}, true)
	rec.operation("restart", &stopwatch{total: 10, steps: map[string]float64{"other": 2}}, true)
	rep.addSteps(rec, "start")
	rep.addSteps(rec, "stop")
	if len(rep.steps) != 1 || !strings.HasPrefix(rep.steps[0][2], "boot 7.00, rows 2.00, (between the steps) 1.00") || strings.Contains(rep.steps[0][2], "other") {
		t.Errorf("steps are %q", rep.steps)
	}
}

func TestComparison(t *testing.T) {
	rec, rep := recorder{}, newReport()
	for range 3 {
		rec.operation(seriesOf(destroy, rawExec), &stopwatch{total: 125}, true)
		rec.operation(seriesOf(destroy+byHand, rawExec), &stopwatch{total: 100}, false)
		rec.operation(seriesOf(stop, rawExec), &stopwatch{total: 125}, true)
		rec.operation(seriesOf(stop+byHand, rawExec), &stopwatch{total: 100}, false)
	}
	rep.addRounds(rec)
	if len(rep.figures) != 2 {
		t.Fatalf("%d figures: %+v", len(rep.figures), rep.figures)
	}
	stops, destroys := rep.figures[0], rep.figures[1]
	near(t, "ratio", destroys.ratio, 1.25)
	if stops.missed || !destroys.missed || destroys.target != "≤ 1.2 ×" || destroys.against != hand {
		t.Errorf("stop %+v, destroy %+v", stops, destroys)
	}
	if f := (figure{}).least(19, 20, "≥ %g ×"); !f.missed || (figure{}).least(20, 20, "≥ %g ×").missed {
		t.Error("19 of at least 20 is enough, or 20 is not")
	}
	if f := (figure{orch: once(1)}).beside("nothing", summary{}); f.ratio != 0 {
		t.Errorf("the ratio to nothing is %v", f.ratio)
	}
}

func TestMarkdown(t *testing.T) {
	rep := newReport()
	rep.add(figure{name: "wake ≤", unit: "ms", orch: summary{3, 12.34, 20, 30}, own: summary{3, 1.5, 2, 4}}.beside(hand, once(6.17)).most(2, 1.3, "≤ %g ×"))
	text := rep.markdown()
	row := "| wake ≤ | ms | 3 | 12.3 | 20.0 | 30.0 | 1.50 | 4.00 | Nomad by hand | 6.17 | – | – | 2.00 | ≤ 1.3 × | **no** |"
	if !slices.Contains(strings.Split(spaces.Replace(text), "\n"), row) || strings.Contains(text, "CPU time of") {
		t.Errorf("no row\n%s\nin\n%s", row, text)
	}
}

var spaces = strings.NewReplacer("      ", " ", "     ", " ", "    ", " ", "   ", " ", "  ", " ")

// The latency of a call in a load at a rate begins when the call is due, so that it includes
// the wait behind a stalled call, and the wait for a free connection.
func TestLoad(t *testing.T) {
	var calls atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := calls.Add(1); {
		case r.URL.Path == "/stall" && n == 1:
			time.Sleep(300 * time.Millisecond)
		case r.URL.Path == "/refuse" && n%2 == 0:
			_, _ = w.Write([]byte(`{"admitted":false}`))
			return
		}
		_, _ = w.Write([]byte(`{"admitted":true}`))
	}))
	defer server.Close()
	target := func(path string) []vegeta.Target { return []vegeta.Target{{Method: "GET", URL: server.URL + path}} }
	t.Run("Rate", func(t *testing.T) {
		a, err := load{perSecond: 100, callers: 1, calls: 40}.run(t.Context(), http.DefaultTransport, target("/stall"))
		if err != nil || a.failed > 0 || a.latency.n != 40 {
			t.Fatalf("%+v, %v", a, err)
		}
		if a.latency.p50 < 50 || a.late.p50 < 50 {
			t.Errorf("calls that waited for a stall of 300 ms took p50 %v ms, of it %v late", a.latency.p50, a.late.p50)
		}
	})
	t.Run("Failed", func(t *testing.T) {
		calls.Store(0)
		a, err := load{callers: 4, calls: 100, must: admitted}.run(t.Context(), http.DefaultTransport, target("/refuse"))
		if err != nil || a.failed != 50 || a.first == nil || calls.Load() != 100 {
			t.Errorf("%+v, %v after %d calls, want half of 100 failed", a, err, calls.Load())
		}
		near(t, "succeeded per second", a.perSecond*a.seconds, 50)
	})
}

func TestChosen(t *testing.T) {
	some, err := chosen("load,rounds,snapshots")
	if err != nil || len(some) != 3 || some[0].name != "load" {
		t.Errorf("%v, %v", some, err)
	}
	if alone, err := chosen("scale"); err != nil || len(alone) != 1 || alone[0].name != scale {
		t.Errorf("%v, %v", alone, err)
	}
	for _, list := range []string{"", "nothing", "rounds,scale"} {
		if _, err := chosen(list); err == nil {
			t.Errorf("%q is accepted", list)
		}
	}
}

func TestCaught(t *testing.T) {
	want := errors.New("wanted")
	if err := caught(func() { check(want); t.Error("went on") }); !errors.Is(err, want) {
		t.Errorf("caught %v", err)
	}
	err := caught(func() {
		each(t.Context(), []int{1, 2, 3}, 2, func(_ context.Context, n int) {
			if n == 2 {
				check(want)
			}
		})
	})
	if !errors.Is(err, want) {
		t.Errorf("caught %v of those done concurrently", err)
	}
}

// The engines of the scale curve pass the key proof, in both orders of requests that the
// service uses.
func TestAllEngines(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.Config = allEngines()
	server.Start()
	defer server.Close()
	for _, connection := range []struct {
		asks string
		want []int
	}{
		{"/health,/proof,/proof wrong,/proof own", []int{200, 401, 401, 404}},
		{"/proof wrong", []int{401}},
		{"/health,/proof own", []int{200, 404}},
	} {
		client := &http.Client{Transport: &http.Transport{}}
		for i, ask := range strings.Split(connection.asks, ",") {
			path, key, _ := strings.Cut(ask, " ")
			req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil))
			req.Header.Set("X-Engine-Key", key)
			resp := must(client.Do(req))
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != connection.want[i] {
				t.Errorf("%s: %q returns %d, want %d", connection.asks, ask, resp.StatusCode, connection.want[i])
			}
		}
		client.CloseIdleConnections()
	}
}
