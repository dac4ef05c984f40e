package cmdline

import (
	"runtime/debug"
	"testing"
)

// The linker's values take precedence over what Go recorded.
func TestBuildInfo(t *testing.T) {
	recorded := &debug.BuildInfo{
		Main:     debug.Module{Version: "v1.2.3"},
		Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.time", Value: "2026-11-28T15:00:00Z"}},
	}
	for name, tc := range map[string]struct {
		linked BuildInfo
		info   *debug.BuildInfo
		want   string
	}{
		"Nothing":  {BuildInfo{}, nil, "dev, commit unknown, date unknown"},
		"Devel":    {BuildInfo{}, &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "dev, commit unknown, date unknown"},
		"Recorded": {BuildInfo{}, recorded, "v1.2.3, commit abc, date 2026-11-28T15:00:00Z"},
		"Linked":   {BuildInfo{"v2", "def", "2026-11-29T15:00:00Z"}, recorded, "v2, commit def, date 2026-11-29T15:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := buildInfo(tc.linked, tc.info).String(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
