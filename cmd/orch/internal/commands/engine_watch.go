package commands

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func engineWatch() *spec {
	return &spec{
		name: "engine watch", args: []string{"[user_id]"}, needs: needsPlatformKey,
		synopsis: "Print state changes of an engine, or of all engines, as they happen",
		about: `Print the state of a user's engine, or of all engines of the product, and then a
line for each change, until interrupted. A state that lasts for less than a second
may be missed; "orch audit tail -f" shows every operation. With -json each line is
an object.`,
		examples: []string{"orch engine watch alice@example.com", "orch engine watch -json | jq -r 'select(.status == \"failed\") | .user_id'"},
		run: func(ctx context.Context, in *invocation) error {
			w := &watcher{in: in, now: time.Now, seen: map[string]client.Engine{}}
			_, err := w.look(ctx)
			if err == nil {
				err = in.poll(ctx, "engine watch", w.look)
			}
			if ctx.Err() != nil {
				return nil // the regular end
			}
			return err
		},
	}
}

// watcher prints changes of engines.
type watcher struct {
	in   *invocation
	now  func() time.Time
	seen map[string]client.Engine // by user
}

// look prints what has changed since the previous call. It never ends the watch.
func (w *watcher) look(ctx context.Context) (done bool, err error) {
	now, err := w.engines(ctx)
	if err != nil {
		return false, err
	}
	there := map[string]bool{}
	for _, e := range now {
		there[e.UserID] = true
		if before, known := w.seen[e.UserID]; known && same(before, e) {
			continue
		}
		w.seen[e.UserID] = e
		if err := w.print(e); err != nil {
			return false, err
		}
	}
	for _, user := range slices.Sorted(maps.Keys(w.seen)) {
		if there[user] {
			continue
		}
		e := client.Engine{EngineID: w.seen[user].EngineID, UserID: user, Status: destroyed}
		delete(w.seen, user)
		if err := w.print(e); err != nil {
			return false, err
		}
	}
	return false, nil
}

// engines returns the watched engines, without keys.
func (w *watcher) engines(ctx context.Context) ([]client.Engine, error) {
	if len(w.in.Args) == 0 {
		list, err := engines(0, func(limit int, cursor string) (*client.EngineList, error) {
			return w.in.client.Engines(ctx, client.EngineFilter{Limit: limit, Cursor: cursor})
		})
		if err != nil {
			return nil, err
		}
		return list.Engines, nil
	}
	e, err := w.in.client.Engine(ctx, w.in.Args[0])
	if errors.Is(err, client.ErrEngineNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []client.Engine{*withoutKey(e)}, nil
}

// same reports whether two versions of an engine look the same to the user.
func same(a, b client.Engine) bool {
	return a.EngineID == b.EngineID && a.Status == b.Status && a.Reason == b.Reason && underWay(a) == underWay(b)
}

// underWay returns the kind of the operation in progress; empty: none.
func underWay(e client.Engine) string {
	if e.Operation == nil {
		return ""
	}
	return e.Operation.Kind
}

func (w *watcher) print(e client.Engine) error {
	at := w.now()
	if w.in.JSON {
		return w.in.PrintJSON(struct {
			Time time.Time `json:"time"`
			client.Engine
		}{at.UTC(), e}, "")
	}
	var details []string
	if e.Reason != "" {
		details = append(details, "reason="+e.Reason)
	}
	if kind := underWay(e); kind != "" {
		details = append(details, "operation="+kind)
	}
	text := fmt.Sprintf("%s  %s  %s  %s", cmdline.Moment(at), w.in.State(e.Status, len(client.Provisioning)), cmdline.Cell(e.UserID), cmdline.Clean(strings.Join(details, " ")))
	_, err := fmt.Fprintln(w.in.Env.Out, strings.TrimRight(text, " "))
	return err
}
