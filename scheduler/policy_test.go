package scheduler

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

func TestAllowedImage(t *testing.T) {
	s := &Scheduler{opts: Options{Job: jobs.Settings{Driver: jobs.Docker}, DefaultImage: "acme/engine:1"}}
	policy := engine.Policy{EngineImage: "acme/own:2", AllowedImages: []string{"acme/engine:*", "lab/*"}}
	for _, c := range []struct {
		name   string
		policy engine.Policy
		asked  string
		want   string
		code   engine.Code
	}{
		{"Default", engine.Policy{}, "", "acme/engine:1", ""},
		{"ProductsDefault", policy, "", "acme/own:2", ""},
		{"DefaultByName", policy, "acme/engine:1", "acme/engine:1", ""},
		{"ProductsByName", policy, "acme/own:2", "acme/own:2", ""},
		{"Glob", policy, "acme/engine:7", "acme/engine:7", ""},
		{"GlobOneSegment", policy, "lab/a", "lab/a", ""},
		{"ErrGlobTwoSegments", policy, "lab/a/b", "", engine.PolicyDenied},
		{"Star", engine.Policy{AllowedImages: []string{"*"}}, "r.example:5000/lab/a/b:1", "r.example:5000/lab/a/b:1", ""},
		{"TwoStars", engine.Policy{AllowedImages: []string{"lab/**"}}, "lab/a/b:1", "lab/a/b:1", ""},
		{"TwoStarsInside", engine.Policy{AllowedImages: []string{"lab/**/b:*"}}, "lab/x/y/b:1", "lab/x/y/b:1", ""},
		{"ErrTwoStarsInside", engine.Policy{AllowedImages: []string{"lab/**/b:*"}}, "lab/x/y/c:1", "", engine.PolicyDenied},
		{"ErrTwoStarsElsewhere", engine.Policy{AllowedImages: []string{"lab/**"}}, "evil/lab/a", "", engine.PolicyDenied},
		{"ErrNotAllowed", policy, "evil/engine:1", "", engine.PolicyDenied},
		{"ErrNoPolicy", engine.Policy{}, "acme/engine:2", "", engine.PolicyDenied},
		{"ErrInterpolation", policy, "${attr.cpu}", "", engine.InvalidRequest},
		{"ErrSpace", policy, "acme/engine: 1", "", engine.InvalidRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := s.allowedImage(&engine.Product{Policy: c.policy}, c.asked)
			if c.code != "" {
				if err == nil || AsError(err).Code != c.code {
					t.Fatalf("got %v, want %s", err, c.code)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// For any request, an accepted raw_exec image is a plain file name, and Nomad can
// interpolate no image.
func TestCheckImageHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		image := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z./$\{\}~-]{0,12}`)).Draw(t, "image")
		if CheckImage(jobs.RawExec, image) == nil {
			if image == "" || strings.ContainsAny(image, "/\\\x00${}") || strings.HasPrefix(image, ".") || strings.HasPrefix(image, "-") {
				t.Fatalf("%q passed as a file name", image)
			}
		}
		if CheckImage(jobs.Docker, image) == nil && (image == "" || strings.ContainsAny(image, "${} \x00")) {
			t.Fatalf("%q passed as an image", image)
		}
	})
}

// TestIsolationHasARuntime: each kind of isolation that a policy can name has a docker
// runtime of its own.
func TestIsolationHasARuntime(t *testing.T) {
	seen := map[string]bool{}
	for _, isolation := range []string{engine.IsolationRunc, engine.IsolationGVisor, engine.IsolationKata} {
		name := jobs.Runtime(isolation)
		if name == "" || seen[name] {
			t.Errorf("%s has the runtime %q", isolation, name)
		}
		seen[name] = true
	}
	if len(jobs.Runtimes()) != len(seen) {
		t.Errorf("the runtimes are %v", jobs.Runtimes())
	}
}
