package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/client"
)

// record is a row of the audit log.
type record client.AuditEntry

func (r record) String() string {
	return fmt.Sprintf("row %d of %s: %s %s, engine %s, request %s", r.ID, r.Timestamp.Format("15:04:05.000"), r.Action, r.Outcome, short(r.EngineID), r.RequestID)
}

// auditLog reads all rows of a product.
func (r *rig) auditLog(ctx context.Context, p *product) ([]record, error) {
	c := &client.Client{BaseURL: r.urls[replicaName(0)], PlatformKey: p.PlatformAPIKey, HTTP: r.http}
	var all []record
	for row, err := range c.AllAudit(ctx, client.AuditFilter{Limit: 1000}) {
		if err != nil {
			return nil, err
		}
		all = append(all, record(row))
	}
	return all, nil
}

// actions are the audit actions for each kind of call.
var actions = map[kind]string{provision: "provision", start: "start", stop: "stop", rotate: "rotate_key", destroy: "destroy"}

// audited returns which calls of a product are not recorded with the outcome that their
// caller got.
func audited(calls []*call, rows []record) (problems []string) {
	byRequest, byUser := map[string][]record{}, map[string][]record{}
	for _, r := range rows {
		byRequest[r.RequestID] = append(byRequest[r.RequestID], r)
		byUser[r.UserID] = append(byUser[r.UserID], r)
	}
	bad := func(c *call, format string, args ...any) {
		problems = append(problems, fmt.Sprintf(format, args...)+"\n    "+c.String())
	}
	for _, c := range calls {
		// During an operation the silence of a node may be recorded, and during a denied
		// admit the denial.
		own := slices.DeleteFunc(slices.Clone(byRequest[c.requestID]), func(r record) bool {
			return r.Action == "admit_denied" || r.Action == "health_failed"
		})
		for _, r := range own {
			if c.answer.status != 0 && r.Outcome == "interrupted" && !(c.answer.unknown() && (neverClaimed(r) || mayBeInterrupted(r, byUser[c.user]))) {
				bad(c, "its caller got a response, but the outcome in the log is interrupted: %s", r)
			}
			if r.Outcome != "interrupted" && r.DurationMS == nil {
				bad(c, "no duration: %s", r)
			}
		}
		if c.kind == get || c.kind == admit {
			continue
		}
		switch {
		case len(own) > 1:
			bad(c, "%d rows of one call: %v", len(own), own)
		case c.answer.ok() && (len(own) == 0 || own[0].Outcome == "ENGINE_BUSY") && !joined(c, byUser[c.user]):
			bad(c, "it was done, and the log has no row of it")
		case c.answer.ok() && len(own) > 0 && own[0].Outcome != "ENGINE_BUSY" && (own[0].Outcome != "ok" || own[0].Action != actions[c.kind]):
			bad(c, "it was done; %s", own[0])
		case !c.answer.ok() && !c.answer.unknown() && len(own) > 0 && own[0].Outcome != c.answer.code && own[0].Outcome != "interrupted":
			bad(c, "it was not done; %s", own[0])
		}
	}
	return problems
}

// neverClaimed reports whether a row is of a provision that got no engine. If the replica ends
// while it does not know yet whether it has one, no other replica has an operation to take
// over, and nobody completes the row.
func neverClaimed(r record) bool { return r.Action == "provision" && r.EngineID == "" }

// mayBeInterrupted reports whether a destroy may have interrupted the operation of a row
// whose owner may have ended, so that nobody completes the row.
func mayBeInterrupted(cut record, rows []record) bool {
	return slices.ContainsFunc(rows, func(r record) bool {
		return r.Action == "destroy" && r.EngineID != "" && !r.Timestamp.Before(cut.Timestamp)
	})
}

// joined reports whether a call joined another change, which has a row.
func joined(c *call, rows []record) bool {
	const clocks = time.Second
	return slices.ContainsFunc(rows, func(r record) bool {
		// A change that is completed in the background ends after its caller was told that
		// it is not confirmed.
		over := r.Outcome == "ok" && r.DurationMS != nil
		if r.RequestID == c.requestID || r.Timestamp.After(c.ended.Add(clocks)) || over && r.Timestamp.Add(time.Duration(*r.DurationMS)*time.Millisecond).Before(c.began.Add(-clocks)) {
			return false
		}
		switch c.kind {
		case start:
			return r.Action == "start" || r.Action == "wake" || strings.HasPrefix(r.Action, "auto_restart_")
		case stop:
			return r.Action == "stop"
		case destroy: // also of a provision that removed itself
			return r.Action == "destroy" || r.Action == "provision"
		}
		return false
	})
}
