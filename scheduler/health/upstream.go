package health

import (
	"context"
	"errors"
	"path"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/boot"
)

// upstreams returns the subsystems because of which an engine reports that it cannot serve,
// if a new process could repair none of them: its dependencies are down. nil: it does not
// respond, names none, or names one of mendable, which are globs.
func upstreams(err error, mendable []string) []string {
	var u *boot.Unable
	if !errors.As(err, &u) {
		return nil
	}
	for _, name := range u.Failing {
		for _, glob := range mendable {
			if ok, _ := path.Match(glob, name); ok {
				return nil
			}
		}
	}
	return u.Failing
}

// checkMargin is the time for Consul's servers to learn the result of a check.
const checkMargin = 2 * time.Second

// confirm probes an engine whose check fails, or which waits for its upstreams. If it does
// not respond, or a new process may repair it, it is failed. An engine that the service
// cannot reach is failed if its check has been critical for as long as it takes to run
// again.
func (m *Monitor) confirm(ctx context.Context, at *observation, reason string, crash int64) (acted bool, err error) {
	process := boot.Process{URL: at.row.URL, JobID: at.row.JobID(), AllocID: at.row.AllocID}
	err = m.ask(ctx, process, 1)
	if err != nil && upstreams(err, m.d.Subsystems) == nil && ctx.Err() == nil {
		m.d.Engines.GoOn(ctx, at.row)
		err = m.ask(ctx, process, max(1, m.d.MaxFailures-1))
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	var told *boot.Secondhand
	if errors.As(err, &told) && !(told.Settled && m.d.Checks.FailsFor(at.row) > m.d.CheckEvery+m.d.ProbeTimeout+checkMargin) {
		return false, nil // its check may not have run since its agent was started, or since SIGCONT
	}
	if boot.Unproven(err) && !at.fails { // only its check tells whether it serves
		return false, nil
	}
	failing := upstreams(err, m.d.Subsystems)
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

// noteUpstreams writes into the row of a running engine that it cannot serve because of its
// dependencies. It keeps running, because a restart would change nothing.
func (m *Monitor) noteUpstreams(ctx context.Context, row *engine.Row, failing []string) error {
	row = row.Clone()
	row.Reason = engine.ReasonUpstream
	err := m.d.Engines.Update(ctx, row, audit.ActionHealthFailed, map[string]any{"reason": engine.ReasonUpstream, "subsystems": failing})
	if err == nil {
		m.d.Log.Warn("an engine cannot serve because of its dependencies; it is not restarted", "engine_id", row.EngineID, "product_id", row.ProductID, "subsystems", failing)
	}
	return err
}

func (m *Monitor) noteHealed(ctx context.Context, row *engine.Row) error {
	row = row.Clone()
	reason := row.Reason
	row.Reason, row.LastHealthAt = "", time.Now().UTC()
	return m.d.Engines.Update(ctx, row, audit.ActionHealthRecovered, map[string]any{"reason": reason})
}
