package commands

import (
	"context"
	"flag"
	"fmt"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

// describeEngine shows an engine as a table, with its key only if withKey is set.
func describeEngine(e *client.Engine, withKey bool) *cmdline.Table {
	t := &cmdline.Table{}
	t.Fact("User", e.UserID)
	t.Fact("Engine", e.EngineID)
	t.Fact("Status", cmdline.State(e.Status))
	t.Fact("Reason", e.Reason)
	t.Fact("URL", e.URL)
	if withKey {
		t.Fact("Key", e.APIKey)
	}
	t.Fact("Image", e.EngineVersion)
	t.Fact("Digest", e.ImageDigest)
	t.Fact("Created", e.CreatedAt)
	t.Fact("Healthy at", e.LastHealthAt)
	return t
}

const keyUsage = "also show the engine's key"

// withoutKey returns a copy of an engine without its key.
func withoutKey(e *client.Engine) *client.Engine {
	hidden := *e
	hidden.APIKey = ""
	return &hidden
}

func engineProvision() *spec {
	var version, idempotencyKey string
	return &spec{
		name: "engine provision", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Create an engine for a user",
		about: `Create an engine for a user, wait until it is usable, and print its address and
its key.`,
		examples: []string{
			"orch engine provision alice@example.com",
			`orch engine provision -idempotency-key "signup-4711" alice@example.com`,
			"orch engine provision -json alice@example.com | jq -r .url",
		},
		flags: func(f *flag.FlagSet) {
			f.StringVar(&version, "engine-version", "", "the engine's `image` (default: the product's, or else the service's)")
			f.StringVar(&idempotencyKey, "idempotency-key", "", "repeating the call with the same `key` within 24 hours returns the same result")
		},
		run: func(ctx context.Context, in *invocation) error {
			var options []client.ChangeOption
			if idempotencyKey != "" {
				options = append(options, client.IdempotencyKey(idempotencyKey))
			}
			e, err := cmdline.Wait(ctx, in.Call, "booting the engine of "+in.Args[0], func(ctx context.Context) (*client.Engine, error) {
				return in.client.Provision(ctx, in.Args[0], version, options...)
			})
			if err != nil {
				return err
			}
			return in.Show(e, describeEngine(e, true))
		},
	}
}

func engineAdmit() *spec {
	var o client.AdmitOptions
	var withKey bool
	return &spec{
		name: "engine admit", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Check whether a user may use its engine now, and where it is",
		about: `Make the call that a product makes on every request of a user. If the user is not
admitted, the exit code is 1 and the reason is printed. The engine's key is shown
only with -key, in JSON too.`,
		examples: []string{
			"orch engine admit alice@example.com",
			"orch engine admit -auto-provision -auto-wake alice@example.com",
		},
		flags: func(f *flag.FlagSet) {
			f.BoolVar(&o.AutoProvision, "auto-provision", false, "create an engine if there is none")
			f.BoolVar(&o.AutoWake, "auto-wake", false, "wake a sleeping engine")
			f.BoolVar(&withKey, "key", false, keyUsage)
		},
		run: func(ctx context.Context, in *invocation) error {
			a, err := cmdline.Wait(ctx, in.Call, "admitting "+in.Args[0], func(ctx context.Context) (*client.Admission, error) {
				return in.client.Admit(ctx, in.Args[0], o)
			})
			if err != nil {
				return err
			}
			if a.Engine != nil && !withKey {
				a.Engine = withoutKey(a.Engine)
			}
			t := &cmdline.Table{}
			if a.Admitted {
				t = describeEngine(a.Engine, withKey)
			} else {
				t.Row("Not admitted", a.Reason)
			}
			if r := a.Rate; r != nil {
				t.Row("Rate limit", fmt.Sprintf("%d of %d per minute remaining", r.Remaining, r.Limit))
			}
			if err := in.Show(a, t); err != nil || a.Admitted {
				return err
			}
			return cmdline.ErrReported
		},
	}
}

func engineShow() *spec {
	var withKey bool
	return &spec{
		name: "engine show", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Show a user's engine",
		about:    "Show the engine of a user. Its key is shown only with -key, in JSON too.",
		examples: []string{"orch engine show alice@example.com", "orch engine show -key 'auth0|123'", "orch engine show -- -a-name-with-a-dash"},
		flags:    func(f *flag.FlagSet) { f.BoolVar(&withKey, "key", false, keyUsage) },
		run: func(ctx context.Context, in *invocation) error {
			e, err := in.client.Engine(ctx, in.Args[0])
			if err != nil {
				return err
			}
			if !withKey {
				e = withoutKey(e)
			}
			return in.Show(e, describeEngine(e, withKey))
		},
	}
}
