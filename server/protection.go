package server

import "github.com/septemberai/orch/scheduler"

// snapshotsStatus says how well brains are protected by snapshots.
type snapshotsStatus struct {
	RecoveryPointS *int64 `json:"recovery_point_s,omitempty"`
	Overdue        int    `json:"overdue"`
	Without        int    `json:"without"`
	RecoveryTimeMS *int64 `json:"recovery_time_ms,omitempty"`
	FailedDrills   int    `json:"failed_drills"`
	DrillsOverdue  int    `json:"drills_overdue"`
	DrilledAt      string `json:"drilled_at,omitempty"`
	Advice         string `json:"advice,omitempty"`
}

func showProtection(p scheduler.Protection) snapshotsStatus {
	st := snapshotsStatus{Overdue: p.Overdue, Without: p.Without, FailedDrills: p.FailedDrills, DrillsOverdue: p.DrillsOverdue, Advice: p.Advice()}
	if p.RecoveryPoint > 0 {
		seconds := int64(p.RecoveryPoint.Seconds())
		st.RecoveryPointS = &seconds
	}
	if p.RecoveryTime > 0 {
		ms := p.RecoveryTime.Milliseconds()
		st.RecoveryTimeMS = &ms
	}
	if !p.DrilledAt.IsZero() {
		st.DrilledAt = timestamp(p.DrilledAt)
	}
	return st
}
