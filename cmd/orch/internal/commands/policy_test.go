package commands

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func TestPolicyFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(file, []byte(`{"max_engines": 0, "engine_image": "e"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	before := client.Policy{MaxEngines: new(5), NodePool: "gpu", AllowedImages: []string{"x"}}
	for name, c := range map[string]struct {
		flags policyFlags
		input string
		want  client.Policy
	}{
		"nothing": {policyFlags{}, "", before},
		"set": {policyFlags{sets: []string{"max_engines=0", "allowed_images=a,b/*", "sleep_mode=pause", "cpu_mhz=100"}}, "",
			client.Policy{MaxEngines: new(0), NodePool: "gpu", AllowedImages: []string{"a", "b/*"}, SleepMode: "pause", CPUMHz: new(100)}},
		"remove":          {policyFlags{sets: []string{"max_engines=", "allowed_images=", "node_pool="}}, "", client.Policy{}},
		"an image with =": {policyFlags{sets: []string{"engine_image=a=b"}}, "", client.Policy{MaxEngines: new(5), NodePool: "gpu", AllowedImages: []string{"x"}, EngineImage: "a=b"}},
		"file":            {policyFlags{file: file}, "", client.Policy{MaxEngines: new(0), EngineImage: "e"}},
		"file and set":    {policyFlags{file: file, sets: []string{"memory_mb=64"}}, "", client.Policy{MaxEngines: new(0), EngineImage: "e", MemoryMB: new(64)}},
		"stdin":           {policyFlags{file: "-"}, `{"warm_pool": 3}`, client.Policy{WarmPool: new(3)}},
	} {
		t.Run(name, func(t *testing.T) {
			change, err := c.flags.change(&newWorld(t, c.input).Env)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, change(before)); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, input := range []string{"", "[]", `{"max_engine": 1}`, `{"max_engines": "x"}`, "{} {}"} {
		flags := policyFlags{file: "-"}
		if _, err := flags.change(&newWorld(t, input).Env); err == nil {
			t.Errorf("%q: got %v", input, err)
		}
	}
	w := newWorld(t, "")
	if err := (&cmdline.Call{Env: &w.Env}).Show(nil, describePolicy(client.Policy{MaxEngines: new(0), AllowedImages: []string{"a", "b"}})); err != nil || w.out.String() != "max_engines     0\nallowed_images  a,b\n" {
		t.Errorf("described as %q, %v", w.out.String(), err)
	}
}
