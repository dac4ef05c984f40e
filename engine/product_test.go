package engine

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckSlug(t *testing.T) {
	for slug, ok := range map[string]bool{
		"a": true, "0": true, "demo": true, "a-b-c": true, "a-": true, "9lives": true, strings.Repeat("a", 40): true,
		"": false, "-a": false, "A": false, "a_b": false, "a.b": false, "a b": false, "ä": false, "a/b": false, "a\n": false,
		strings.Repeat("a", 41): false,
	} {
		if err := CheckSlug(slug); (err == nil) != ok {
			t.Errorf("slug %q: %v, want allowed %v", slug, err, ok)
		}
	}
}

func TestCheckDisplayName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "ACME Inc. (für alle)": true, strings.Repeat("a", 200): true,
		"": false, strings.Repeat("a", 201): false, strings.Repeat("ü", 101): false, "a\nb": false, "\x7f": false,
	} {
		if err := CheckDisplayName(name); (err == nil) != ok {
			t.Errorf("display_name %q: %v, want allowed %v", name, err, ok)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestPolicyCheck(t *testing.T) {
	tests := map[string]struct {
		policy Policy
		want   string // one line per mistake
	}{
		"OKEmpty": {Policy{}, ""},
		"OKFull": {Policy{
			MaxEngines: ptr(50), RateLimitRPM: ptr(600), EngineImage: "engine:1", IdleTimeoutS: ptr(300), CPUMHz: ptr(200), MemoryMB: ptr(512), BrainMB: ptr(1024),
			AllowedImages: []string{"engine:*", "team/[a-z]*", "?"}, WarmPool: ptr(2), NodePool: "gpu_1-a", SleepMode: "pause", Isolation: "gvisor",
			SnapshotIntervalS: ptr(300), SnapshotKeep: ptr(1), OnNodeLost: "restore", NodeLostAfterS: ptr(60),
		}, ""},
		"OKNothingAllowed": {Policy{MaxEngines: ptr(0), RateLimitRPM: ptr(0), IdleTimeoutS: ptr(0), WarmPool: ptr(0), SleepMode: "stop"}, ""},
		"OKLeast":          {Policy{CPUMHz: ptr(1), MemoryMB: ptr(10), BrainMB: ptr(1)}, ""},
		"ErrMaxEngines":    {Policy{MaxEngines: ptr(-1)}, "policy.max_engines is -1; it must be at least 0"},
		"ErrRateLimit":     {Policy{RateLimitRPM: ptr(-1)}, "policy.rate_limit_rpm is -1; it must be at least 0"},
		"ErrIdleTimeout":   {Policy{IdleTimeoutS: ptr(-1)}, "policy.idle_timeout_s is -1; it must be at least 0"},
		"ErrCPU":           {Policy{CPUMHz: ptr(0)}, "policy.cpu_mhz is 0; it must be at least 1"},
		"ErrBrain":         {Policy{BrainMB: ptr(0)}, "policy.brain_mb is 0; it must be at least 1"},
		"ErrMemory":        {Policy{MemoryMB: ptr(9)}, "policy.memory_mb is 9; it must be at least 10"},
		"ErrWarmPool":      {Policy{WarmPool: ptr(-1)}, "policy.warm_pool is -1; it must be at least 0"},
		"ErrGlob":          {Policy{AllowedImages: []string{"fine:*", "[bad"}}, "policy.allowed_images[1] is not a glob pattern"},
		"ErrEmptyGlob":     {Policy{AllowedImages: []string{""}}, "policy.allowed_images[0] is not a glob pattern"},
		"ErrNodePool":      {Policy{NodePool: "a b"}, "policy.node_pool is not a valid name of a node pool"},
		"ErrNodePoolAll":   {Policy{NodePool: "${x}"}, "policy.node_pool is not a valid name of a node pool"},
		"ErrSleepMode":     {Policy{SleepMode: "hibernate"}, `policy.sleep_mode must be "stop" or "pause"`},
		"OKIsolation":      {Policy{Isolation: "kata"}, ""},
		"ErrIsolation":     {Policy{Isolation: "none"}, `policy.isolation must be "runc", "gvisor" or "kata"`},
		"OKNoSnapshots":    {Policy{SnapshotIntervalS: ptr(0)}, ""},
		"ErrInterval":      {Policy{SnapshotIntervalS: ptr(299)}, "policy.snapshot_interval_s is 299; it must be 0 (no snapshots) or at least 300"},
		"ErrIntervalBelow": {Policy{SnapshotIntervalS: ptr(-300)}, "policy.snapshot_interval_s is -300; it must be 0 (no snapshots) or at least 300"},
		"ErrNodeLost":      {Policy{OnNodeLost: "move"}, `policy.on_node_lost must be "wait" or "restore"`},
		"ErrNodeLostAfter": {Policy{NodeLostAfterS: ptr(59)}, "policy.node_lost_after_s is 59; it must be at least 60"},
		"ErrKeep":          {Policy{SnapshotKeep: ptr(0)}, "policy.snapshot_keep is 0; it must be at least 1"},
		"ErrAllAtOnce": {
			Policy{MaxEngines: ptr(-1), MemoryMB: ptr(0), SleepMode: "x"},
			"policy.max_engines is -1; it must be at least 0\npolicy.memory_mb is 0; it must be at least 10\n" + `policy.sleep_mode must be "stop" or "pause"`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := tt.policy.Check(); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		})
	}
}
