package server

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/septemberai/orch/engine"
)

// bodies are the types of all request bodies.
var bodies = []func() any{
	func() any { return new(provisionBody) }, func() any { return new(admitBody) }, func() any { return new(registerBody) },
	func() any { return new(policyBody) }, func() any { return new(rotatePlatformKeyBody) }, func() any { return new(emptyBody) },
	func() any { return new(adoptBody) }, func() any { return new(snapshotBody) }, func() any { return new(restoreBody) }, func() any { return new(forkBody) },
	func() any { return new(importBody) },
}

// FuzzBodies: a body that the decoder accepts is strict JSON with the same meaning for
// encoding/json, and an accepted policy keeps its limits.
func FuzzBodies(f *testing.F) {
	for i := range bodies {
		for _, body := range []string{
			`{"user_id":"u","engine_version":"a:1"}`, `{"auto_provision":true,"auto_wake":false}`, goodProduct, `{"policy":{"max_engines":0,"sleep_mode":"stop","allowed_images":["*"]}}`,
			`{"policy":{"node_pool":"x","cpu_mhz":1e3,"memory_mb":-1}}`, `{"overlap_seconds":86400}`, `{"overlap_seconds":0.5}`, `{"product_id":"p","user_id":"u"}`, `{"label":"before"}`, `{"user_id":"u","snapshot_id":"s"}`, "{}", "", `{"user_id":"\u0000"}`, `{"auto_wake":null}`, `{"auto_wake":"true"}`,
		} {
			f.Add(i, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, i int, body []byte) {
		shape := bodies[uint(i)%uint(len(bodies))]
		got := shape()
		if err := decodeBytes(body, got); err != nil {
			var e *engine.Error
			if !errors.As(err, &e) || e.Code != engine.InvalidRequest || e.Message == "" || len(e.Message) > 1024 {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if strings.Trim(string(body), blanks) == "" {
			return
		}
		if problem := lax(string(body)); problem != nil {
			t.Fatalf("accepted: %v", problem)
		}
		other := shape()
		if err := json.Unmarshal(body, other); err != nil {
			t.Fatalf("accepted, but encoding/json returns %v", err)
		}
		if !reflect.DeepEqual(got, other) {
			t.Fatalf("read as %s, encoding/json reads %s", shown(got), shown(other))
		}
		if b, ok := got.(*policyBody); ok && b.Policy != nil && b.Policy.Check() == nil {
			for _, n := range []*int{b.Policy.MaxEngines, b.Policy.RateLimitRPM, b.Policy.IdleTimeoutS, b.Policy.CPUMHz, b.Policy.MemoryMB, b.Policy.BrainMB, b.Policy.WarmPool, b.Policy.SnapshotIntervalS, b.Policy.SnapshotKeep, b.Policy.NodeLostAfterS} {
				if n != nil && *n < 0 {
					t.Fatalf("a negative number passes the check: %s", body)
				}
			}
		}
	})
}
