package jobs

import "testing"

func TestPinned(t *testing.T) {
	for image, want := range map[string]bool{
		"engine": false, "engine:latest": false, "r/engine": false, "r:5000/engine": false, "r:5000/a/engine:latest": false,
		"engine:1": true, "r:5000/engine:v1.2": true, "r/engine:latest-1": true, "engine@sha256:abc": true, "r:5000/engine:latest@sha256:abc": true,
	} {
		if got := pinned(image); got != want {
			t.Errorf("%s: %t, want %t", image, got, want)
		}
	}
}

func TestReference(t *testing.T) {
	for image, want := range map[string]string{
		"engine": "engine@sha256:d", "engine:1": "engine@sha256:d", "o/engine:1": "o/engine@sha256:d", "r:5000/engine": "r:5000/engine@sha256:d",
		"r:5000/a/engine:1.2": "r:5000/a/engine@sha256:d", "engine@sha256:d": "engine@sha256:d", "r:5000/engine:1@sha256:d": "r:5000/engine@sha256:d",
	} {
		if got := reference(image, "sha256:d"); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
		if got := reference(image, ""); got != image {
			t.Errorf("%s is started as %s", image, got)
		}
	}
}
