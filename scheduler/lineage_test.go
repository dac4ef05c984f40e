package scheduler

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
	anew := vault(3)
	anew.Registry = "another"
	for name, tc := range map[string]struct {
		here  *registry.Deployment
		there *secrets.Deployment
		want  lineage
	}{
		"New":                {&registry.Deployment{}, &secrets.Deployment{}, lineageNew},
		"Same":               {known(3), vault(3), lineageSame},
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

// Leaders raise the epoch in Vault before they raise it in Consul, and may die in
// between. Whatever store is put back to what it was at any moment, the comparison
// never says that both are as they were when the registry alone went back over a
// term.
func TestLineageHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type both struct {
			here  registry.Deployment
			there secrets.Deployment
		}
		now := both{registry.Deployment{ID: "d", Registry: "r", Index: 1}, secrets.Deployment{ID: "d", Registry: "r", Where: "w"}}
		history := []both{now}
		for range rapid.IntRange(1, 8).Draw(t, "terms") {
			next := max(now.here.Epoch, now.there.Epoch) + 1
			now.there.Epoch = next
			history = append(history, now)
			if rapid.IntRange(0, 4).Draw(t, "the leader dies") == 0 {
				continue
			}
			now.here.Epoch = next
			history = append(history, now)
		}
		old := history[rapid.IntRange(0, len(history)-1).Draw(t, "moment")]
		switch rapid.SampledFrom([]string{"consul", "vault", "none"}).Draw(t, "store") {
		case "consul":
			got := compare(&old.here, &now.there, "w")
			if want := old.here.Epoch < now.there.Epoch; (got == lineageBehind) != want {
				t.Fatalf("consul at %d, vault at %d: %d", old.here.Epoch, now.there.Epoch, got)
			}
		case "vault":
			got := compare(&now.here, &old.there, "w")
			if old.there.Epoch < now.here.Epoch && got != lineageKeysBehind {
				t.Fatalf("consul at %d, vault at %d: %d", now.here.Epoch, old.there.Epoch, got)
			}
		default:
			if got := compare(&now.here, &now.there, "w"); got != lineageSame && got != lineageBehind {
				t.Fatalf("nothing went back: %d", got)
			}
		}
	})
}
