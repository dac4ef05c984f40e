package guard

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

func TestCompare(t *testing.T) {
	const where = "here"
	known := func(epoch int) *registry.Deployment {
		return &registry.Deployment{ID: "d", Registry: "r", Epoch: epoch, Index: 1}
	}
	vault := func(epoch int) *secrets.Deployment {
		return &secrets.Deployment{ID: "d", Registry: "r", Epoch: epoch, Where: where}
	}
	other := vault(3)
	other.ID = "other"
	elsewhere := vault(3)
	elsewhere.Where = "elsewhere"
	raising := known(2)
	raising.Raising = 3
	anew := vault(3)
	anew.Registry = "another"
	for name, tc := range map[string]struct {
		here  *registry.Deployment
		there *secrets.Deployment
		want  lineage
	}{
		"New":                {&registry.Deployment{}, &secrets.Deployment{}, lineageNew},
		"Same":               {known(3), vault(3), lineageSame},
		"LeaderDied":         {raising, vault(3), lineageSame},
		"RestoredThen":       {raising, vault(4), lineageBehind},
		"ConsulRestored":     {known(2), vault(3), lineageBehind},
		"ConsulLost":         {&registry.Deployment{}, vault(3), lineageLost},
		"RegistryMadeAnew":   {known(3), anew, lineageLost},
		"VaultRestored":      {known(3), vault(2), lineageKeysBehind},
		"VaultEmptied":       {known(3), &secrets.Deployment{Version: 4}, lineageKeysBehind},
		"Foreign":            {known(3), other, lineageForeign},
		"ForeignToAnEmpty":   {&registry.Deployment{}, elsewhere, lineageForeign},
		"MovedByTheOperator": {known(3), elsewhere, lineageSame},
	} {
		t.Run(name, func(t *testing.T) {
			if got := compare(tc.here, tc.there, where); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

// Leaders announce the next epoch in Consul, raise it in Vault, then in Consul, and may die
// at any of these steps. If either store is restored to any earlier moment, this is
// reported, unless the epoch in the other was not finished since; if no store was restored,
// nothing is reported.
func TestLineageHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type both struct {
			here  registry.Deployment
			there secrets.Deployment
		}
		now := both{registry.Deployment{ID: "d", Registry: "r", Epoch: 1, Index: 1}, secrets.Deployment{ID: "d", Registry: "r", Epoch: 1, Where: "w"}}
		history := []both{now}
		for range rapid.IntRange(1, 8).Draw(t, "terms") {
			next := max(now.here.Epoch, now.here.Raising, now.there.Epoch) + 1
			for _, step := range []func(){
				func() { now.here.Epoch, now.here.Raising = max(now.here.Epoch, now.there.Epoch), next },
				func() { now.there.Epoch = next },
				func() { now.here.Epoch, now.here.Raising = next, 0 },
			}[:rapid.IntRange(0, 3).Draw(t, "steps of the leader")] {
				step()
				history = append(history, now)
			}
		}
		if got := compare(&now.here, &now.there, "w"); got != lineageSame {
			t.Fatalf("nothing went back: %d", got)
		}
		old := history[rapid.IntRange(0, len(history)-1).Draw(t, "moment")]
		switch rapid.SampledFrom([]string{"consul", "vault"}).Draw(t, "store") {
		case "consul":
			got := compare(&old.here, &now.there, "w")
			if want := max(old.here.Epoch, old.here.Raising) < now.there.Epoch; (got == lineageBehind) != want {
				t.Fatalf("consul at %d (raising %d), vault at %d: %d", old.here.Epoch, old.here.Raising, now.there.Epoch, got)
			}
		case "vault":
			if got := compare(&now.here, &old.there, "w"); old.there.Epoch < now.here.Epoch && got != lineageKeysBehind {
				t.Fatalf("consul at %d, vault at %d: %d", now.here.Epoch, old.there.Epoch, got)
			}
		}
	})
}
