package witness

import (
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// A row that is rebuilt, or that is older than its engine, gets the digest of the engine's
// last start.
func TestWitnessesKeepTheDigest(t *testing.T) {
	owner := secrets.Owner{Deployment: simDeployment, ProductID: "p", UserID: "u", EngineID: "e"}
	job := func(image, digest string) *jobs.Engine {
		return &jobs.Engine{ProductID: "p", UserID: "u", Count: 1, Image: image, Digest: digest}
	}
	variable := func(image, digest string) *cluster.Variable {
		return &cluster.Variable{KeyHash: secrets.Hash("k"), Witness: &cluster.Witness{EngineID: "e", ProductID: "p", UserID: "u", Image: image, Digest: digest}}
	}
	for name, tc := range map[string]struct {
		job           *jobs.Engine
		variable      *cluster.Variable
		image, digest string // of the rebuilt row
	}{
		"Job":              {job("i:1", "sha256:a"), nil, "i:1", "sha256:a"},
		"Variable":         {nil, variable("i:1", "sha256:a"), "i:1", "sha256:a"},
		"Both":             {job("i:1", "sha256:a"), variable("i:1", "sha256:a"), "i:1", "sha256:a"},
		"JobOfATag":        {job("i:1", ""), variable("i:1", "sha256:a"), "i:1", "sha256:a"},
		"JobOfAnotherName": {job("i@sha256:a", "sha256:a"), variable("i:1", "sha256:b"), "i@sha256:a", "sha256:a"},
		"NotPinned":        {job("i:1", ""), variable("i:1", ""), "i:1", ""},
		"AnotherImage":     {job("i:2", ""), variable("i:1", "sha256:a"), "i:2", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := &Evidence{
				id: "e", deployment: simDeployment, keys: []*secrets.EngineKey{{Key: "k", ID: "k1", Owner: owner, Version: 1}},
				job: tc.job, variable: tc.variable, volumes: []*cluster.Volume{{ID: "v", Name: engine.JobID("e")}},
			}
			r := w.JudgeLost(time.Now(), true)
			if r.Verdict != Rebuild || r.Row.Image != tc.image || r.Row.Digest != tc.digest {
				t.Fatalf("%s: %+v", r.Verdict, r.Row)
			}
			w.row = r.Row.Clone()
			w.row.State, w.row.Reason, w.row.Digest = engine.Running, "", "" // from before it was resolved
			if r = w.JudgeRow(time.Now(), true); tc.digest != "" && (r.Verdict != Correct || r.Row.Digest != tc.digest) {
				t.Errorf("an older row: %s: %+v", r.Verdict, r.Row)
			}
			w.row.Digest = "sha256:own"
			if r = w.JudgeRow(time.Now(), true); r.Row != nil && r.Row.Digest != "sha256:own" {
				t.Errorf("a row that has one: %+v", r.Row)
			}
		})
	}
}
