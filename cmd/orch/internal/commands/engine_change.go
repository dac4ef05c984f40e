package commands

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func engineStart() *spec {
	return &spec{
		name: "engine start", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Start a stopped, sleeping or failed engine",
		about:    "Start the engine of a user, and wait until it is usable.",
		examples: []string{"orch engine start alice@example.com"},
		run:      change("starting", (*client.Client).Start),
	}
}

func engineStop() *spec {
	return &spec{
		name: "engine stop", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "End the process of an engine; its brain and key are kept",
		about: `End the process of a user's engine, and wait for its end. The brain and the key are
kept; only a start starts the engine again.`,
		examples: []string{"orch engine stop alice@example.com"},
		run:      change("stopping", (*client.Client).Stop),
	}
}

func engineDestroy() *spec {
	return &spec{
		name: "engine destroy", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Destroy an engine, with its brain and key",
		about:    "Destroy a user's engine, with its brain and its key, in any state. This cannot be\nundone: orch asks for confirmation, unless -yes is given.",
		examples: []string{"orch engine destroy alice@example.com", "orch engine destroy -yes alice@example.com"},
		ask: func(args []string) string {
			return fmt.Sprintf("Destroy the engine of %s, with its brain and key?", args[0])
		},
		run: change("destroying", (*client.Client).Destroy),
	}
}

// change makes a call that changes an engine.
func change(doing string, call func(*client.Client, context.Context, string, ...client.ChangeOption) (*client.Engine, error)) func(context.Context, *invocation) error {
	return func(ctx context.Context, in *invocation) error {
		user := in.Args[0]
		e, err := cmdline.Wait(ctx, in.Call, doing+" the engine of "+user, func(ctx context.Context) (*client.Engine, error) {
			return call(in.client, ctx, user)
		})
		if err != nil {
			return err
		}
		t := &cmdline.Table{}
		t.Row("User", user)
		t.Append(describeEngine(e, false))
		return in.Show(e, t)
	}
}

func engineRotateKey() *spec {
	return &spec{
		name: "engine rotate-key", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Replace the key of a running engine, and print the new key",
		about:    "Replace the key of a user's running engine, and print the new key. The old key no\nlonger works.",
		examples: []string{"orch engine rotate-key alice@example.com"},
		run: func(ctx context.Context, in *invocation) error {
			key, err := cmdline.Wait(ctx, in.Call, "rotating the key of "+in.Args[0], func(ctx context.Context) (string, error) {
				return in.client.RotateKey(ctx, in.Args[0])
			})
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("User", in.Args[0])
			t.Row("New key", key)
			return in.Show(map[string]string{"new_api_key": key}, t)
		},
	}
}

func engineKeepAwake() *spec {
	const least, most = time.Second, time.Hour
	d := 10 * time.Minute
	return &spec{
		name: "engine keep-awake", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Prevent a running engine from being put to sleep for a while",
		about:    "Prevent a user's running engine from being put to sleep, for 1 second to 1 hour.",
		examples: []string{"orch engine keep-awake -for 30m alice@example.com"},
		flags:    func(f *flag.FlagSet) { f.DurationVar(&d, "for", d, "duration") },
		run: func(ctx context.Context, in *invocation) error {
			if d < least || d > most {
				return cmdline.Wrong("-for must be from %s to %s", least, most)
			}
			until, err := in.client.KeepAwake(ctx, in.Args[0], d)
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("User", in.Args[0])
			t.Row("Awake until", until)
			return in.Show(map[string]time.Time{"keep_awake_until": until}, t)
		},
	}
}
