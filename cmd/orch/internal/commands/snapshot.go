package commands

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

const snapshotUsage = "the `snapshot_id` of the snapshot (default: %s)"

// describeSnapshot shows a snapshot as a table.
func describeSnapshot(s *client.Snapshot) *cmdline.Table {
	t := &cmdline.Table{}
	t.Fact("User", s.UserID)
	t.Fact("Engine", s.EngineID)
	t.Fact("Snapshot", s.SnapshotID)
	t.Fact("Created", s.CreatedAt)
	t.Fact("Trigger", s.Trigger)
	t.Fact("Label", s.Label)
	t.Fact("Image", s.EngineVersion)
	t.Row("Size", sizeOf(s.Bytes))
	t.Row("Stored", sizeOf(s.StoredBytes))
	t.Row("Frozen", fmt.Sprintf("%d ms", s.FrozenMS))
	if s.Changed > 0 {
		t.Row("Changed", fmt.Sprintf("%d files and directories, by another process during the copy", s.Changed))
	}
	t.Fact("SHA-256", s.SHA256)
	return t
}

// sizeOf returns a number of bytes for humans.
func sizeOf(n int64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/step, 0
	units := []string{"KiB", "MiB", "GiB", "TiB"}
	for f >= step && unit < len(units)-1 {
		f, unit = f/step, unit+1
	}
	return fmt.Sprintf("%.1f %s", f, units[unit])
}

// continues describes a change that takes longer than the service lets a call wait.
func continues(err error, user string) error {
	var under *client.UnderWay
	if errors.As(err, &under) {
		if under.Engine.UserID != "" {
			user = under.Engine.UserID
		}
		return fmt.Errorf("it takes longer than the service lets a call wait, and continues: orch engine wait %s", cmdline.Clean(user))
	}
	return err
}

func snapshotTake() *spec {
	var label string
	return &spec{
		name: "snapshot take", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Take a snapshot of an engine's brain",
		about: `Take a snapshot of the brain of a user's engine, in any state, and wait until it is
stored. A running engine is frozen only while its brain is copied on its node.`,
		examples: []string{"orch snapshot take alice@example.com", `orch snapshot take -label "before the import" alice@example.com`},
		flags: func(f *flag.FlagSet) {
			f.StringVar(&label, "label", "", "a `text` for human readers, at most 100 characters; it is not encrypted")
		},
		run: func(ctx context.Context, in *invocation) error {
			s, err := cmdline.Wait(ctx, in.Call, "taking a snapshot of the engine of "+in.Args[0], func(ctx context.Context) (*client.Snapshot, error) {
				return in.client.Snapshot(ctx, in.Args[0], label)
			})
			if err != nil {
				return continues(err, in.Args[0])
			}
			return in.Show(map[string]*client.Snapshot{"snapshot": s}, describeSnapshot(s))
		},
	}
}

func snapshotList() *spec {
	var most int
	return &spec{
		name: "snapshot list", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "List the snapshots of an engine",
		about:    "List the snapshots of a user's engine, newest first.",
		examples: []string{"orch snapshot list alice@example.com", "orch snapshot list -n 1 -json alice@example.com | jq -r '.snapshots[].snapshot_id'"},
		flags:    func(f *flag.FlagSet) { f.IntVar(&most, "n", 0, "at most `n`; 0: all") },
		run: func(ctx context.Context, in *invocation) error {
			if most < 0 {
				return cmdline.Wrong("-n must be 0 or more")
			}
			list := &client.SnapshotList{Snapshots: []client.Snapshot{}}
			for s, err := range in.client.AllSnapshots(ctx, in.Args[0]) {
				if err != nil {
					return err
				}
				if list.Snapshots = append(list.Snapshots, s); len(list.Snapshots) == most {
					break
				}
			}
			t := &cmdline.Table{Empty: "no snapshots"}
			t.Head("SNAPSHOT", "CREATED", "TRIGGER", "LABEL", "SIZE", "STORED", "FROZEN MS", "IMAGE")
			for _, s := range list.Snapshots {
				t.Row(s.SnapshotID, s.CreatedAt, s.Trigger, s.Label, sizeOf(s.Bytes), sizeOf(s.StoredBytes), s.FrozenMS, s.EngineVersion)
			}
			return in.Show(list, t)
		},
	}
}

func snapshotDelete() *spec {
	return &spec{
		name: "snapshot delete", args: []string{"user_id", "snapshot_id"}, needs: needsPlatformKey,
		synopsis: "Delete a snapshot of an engine",
		about:    "Delete a snapshot of a user's engine. This cannot be undone: orch asks for\nconfirmation, unless -yes is given.",
		examples: []string{"orch snapshot delete alice@example.com 20261124t205207z-ks5kz6nhh4gq"},
		ask: func(args []string) string {
			return fmt.Sprintf("Delete snapshot %s of the engine of %s?", args[1], args[0])
		},
		run: func(ctx context.Context, in *invocation) error {
			if err := in.client.DeleteSnapshot(ctx, in.Args[0], in.Args[1]); err != nil {
				return err
			}
			return in.ended("deleted", [2]string{"User", in.Args[0]}, [2]string{"Snapshot", in.Args[1]})
		},
	}
}

func engineRestore() *spec {
	var snapshot string
	return &spec{
		name: "engine restore", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Put an engine onto the brain in a snapshot",
		about: `Put a user's engine onto the brain in one of its snapshots, wait until it is usable,
and print its address and its new key. What the engine has written since is no
longer in its brain; if that brain can be read, a snapshot of it is taken first. orch
asks for confirmation, unless -yes is given.`,
		examples: []string{"orch engine restore alice@example.com", "orch engine restore -snapshot 20261124t205207z-ks5kz6nhh4gq alice@example.com"},
		flags: func(f *flag.FlagSet) {
			f.StringVar(&snapshot, "snapshot", "", fmt.Sprintf(snapshotUsage, "the newest"))
		},
		ask: func(args []string) string {
			which := "its newest snapshot"
			if snapshot != "" {
				which = "snapshot " + snapshot
			}
			return fmt.Sprintf("Put the engine of %s onto the brain in %s?", args[0], which)
		},
		run: func(ctx context.Context, in *invocation) error {
			e, err := cmdline.Wait(ctx, in.Call, "restoring the engine of "+in.Args[0], func(ctx context.Context) (*client.Engine, error) {
				return in.client.Restore(ctx, in.Args[0], snapshot)
			})
			if err != nil {
				return continues(err, in.Args[0])
			}
			return in.Show(e, describeEngine(e, true))
		},
	}
}

func engineFork() *spec {
	var snapshot string
	return &spec{
		name: "engine fork", args: []string{"user_id", "new_user_id"}, needs: needsPlatformKey,
		synopsis: "Create an engine for another user, with a copy of an engine's brain",
		about: `Create an engine for another user with the brain in a snapshot of a user's engine,
wait until it is usable, and print its address and its key.`,
		examples: []string{"orch engine fork alice@example.com alice-experiment", "orch engine fork -snapshot 20261124t205207z-ks5kz6nhh4gq alice@example.com bob@example.com"},
		flags: func(f *flag.FlagSet) {
			f.StringVar(&snapshot, "snapshot", "", fmt.Sprintf(snapshotUsage, "one that is taken now"))
		},
		run: func(ctx context.Context, in *invocation) error {
			e, err := cmdline.Wait(ctx, in.Call, "forking the engine of "+in.Args[0], func(ctx context.Context) (*client.Engine, error) {
				return in.client.Fork(ctx, in.Args[0], in.Args[1], snapshot)
			})
			if err != nil {
				return continues(err, in.Args[1])
			}
			return in.Show(e, describeEngine(e, true))
		},
	}
}
