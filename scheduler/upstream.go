package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/registry"
)

// unable is the answer of an engine that it cannot serve now (SPEC section 7).
type unable struct {
	code    int
	failing []string // its subsystems that are not "ok", sorted; nil: it names none
}

func (u *unable) Error() string {
	if len(u.failing) == 0 {
		return fmt.Sprintf("health answered %d, and that it is not ok", u.code)
	}
	return fmt.Sprintf("health answered %d: %s failing", u.code, strings.Join(u.failing, ", "))
}

// failingOf are the names in the subsystems of an answer of /health whose value, or the
// status in it, is not "ok".
func failingOf(subsystems json.RawMessage) (failing []string) {
	var all map[string]json.RawMessage
	_ = json.Unmarshal(subsystems, &all) // of another form: it names none
	for name, value := range all {
		var word string
		if json.Unmarshal(value, &word) != nil {
			var whole struct{ Status string }
			if json.Unmarshal(value, &whole) != nil || whole.Status == "" {
				continue
			}
			word = whole.Status
		}
		if word != "ok" {
			failing = append(failing, name)
		}
	}
	slices.Sort(failing)
	return failing
}

// upstreams are the subsystems for which an engine's answer says that it cannot serve, if
// a new process could mend none of them: what it depends on is down. nil: it does not
// answer, names none, or names one of mendable, which are globs.
func upstreams(err error, mendable []string) []string {
	var u *unable
	if !errors.As(err, &u) {
		return nil
	}
	for _, name := range u.failing {
		for _, glob := range mendable {
			if ok, _ := path.Match(glob, name); ok {
				return nil
			}
		}
	}
	return u.failing
}

// confirm asks an engine whose check fails, or which waits for its upstreams, how it is.
// One that does not answer, or that a new process may mend, is failed.
func (m *monitor) confirm(ctx context.Context, at *sight, reason string, crash int64) (acted bool, err error) {
	err = m.ask(ctx, at.row.URL, 1)
	if err != nil && upstreams(err, m.s.opts.RestartSubsystems) == nil && ctx.Err() == nil {
		m.s.goOn(ctx, at.row)
		err = m.ask(ctx, at.row.URL, max(1, m.s.opts.MaxFailures-1))
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	failing := upstreams(err, m.s.opts.RestartSubsystems)
	switch {
	case err == nil && at.row.Reason != "":
		return true, m.noteHealed(ctx, at.row)
	case err == nil:
		return false, nil
	case failing == nil:
		return true, m.fail(ctx, at, reason, crash)
	case at.row.Reason == "":
		return true, m.noteUpstreams(ctx, at.row, failing)
	}
	return false, nil
}

// noteUpstreams says in the row of a running engine that it cannot serve for what it
// depends on. It runs on: a restart would change nothing.
func (m *monitor) noteUpstreams(ctx context.Context, row *registry.Engine, failing []string) error {
	row = row.Clone()
	row.Reason = reasonUpstream
	err := m.s.auditedUpdate(ctx, row, audit.ActionHealthFailed, map[string]any{"reason": reasonUpstream, "subsystems": failing})
	if err == nil {
		m.s.log.Warn("an engine cannot serve for what it depends on; it is not restarted", "engine_id", row.EngineID, "product_id", row.ProductID, "subsystems", failing)
	}
	return err
}

func (m *monitor) noteHealed(ctx context.Context, row *registry.Engine) error {
	row = row.Clone()
	reason := row.Reason
	row.Reason, row.LastHealthAt = "", time.Now().UTC()
	return m.s.auditedUpdate(ctx, row, audit.ActionHealthRecovered, map[string]any{"reason": reason})
}
