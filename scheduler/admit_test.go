package scheduler

import (
	"fmt"
	"testing"

	"github.com/septemberai/orch/engine"
)

func TestDecide(t *testing.T) {
	neither, provision, wake := AdmitOptions{}, AdmitOptions{AutoProvision: true}, AdmitOptions{AutoWake: true}
	both := AdmitOptions{AutoProvision: true, AutoWake: true}
	row := func(state engine.State, op engine.OpKind) *engine.Row {
		e := &engine.Row{State: state}
		if op != "" {
			e.Op = &engine.Operation{Kind: op}
		}
		return e
	}
	type answer struct {
		way
		Denial
	}
	for _, c := range []struct {
		row                            *engine.Row
		neither, provision, wake, both answer
	}{
		{nil, answer{denied, DenialNotFound}, answer{provisioned, ""}, answer{denied, DenialNotFound}, answer{provisioned, ""}},
		{row(engine.Running, ""), answer{admitted, ""}, answer{admitted, ""}, answer{admitted, ""}, answer{admitted, ""}},
		{row(engine.Running, engine.OpRotateKey), answer{rotating, ""}, answer{rotating, ""}, answer{rotating, ""}, answer{rotating, ""}},
		{row(engine.Running, engine.OpDrill), answer{admitted, ""}, answer{admitted, ""}, answer{admitted, ""}, answer{admitted, ""}},
		{row(engine.Sleeping, engine.OpDrill), answer{denied, DenialSleeping}, answer{joined, ""}, answer{woken, ""}, answer{woken, ""}},
		{row(engine.Stopped, engine.OpDrill), answer{denied, DenialStopped}, answer{joined, ""}, answer{joined, ""}, answer{joined, ""}},
		{row(engine.Failed, engine.OpRotateKey), answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}},
		{row(engine.Running, engine.OpRestart), answer{joined, ""}, answer{joined, ""}, answer{joined, ""}, answer{joined, ""}},
		{row(engine.Running, engine.OpStop), answer{denied, DenialStopped}, answer{denied, DenialStopped}, answer{denied, DenialStopped}, answer{denied, DenialStopped}},
		{row(engine.Running, engine.OpSleep), answer{denied, DenialSleeping}, answer{denied, DenialSleeping}, answer{joined, ""}, answer{joined, ""}},
		{row(engine.Provisioning, engine.OpRecover), answer{denied, DenialProvisioning}, answer{joined, ""}, answer{joined, ""}, answer{joined, ""}},
		{row(engine.Provisioning, engine.OpProvision), answer{denied, DenialProvisioning}, answer{joined, ""}, answer{joined, ""}, answer{joined, ""}},
		{row(engine.Provisioning, engine.OpStart), answer{denied, DenialProvisioning}, answer{joined, ""}, answer{joined, ""}, answer{joined, ""}},
		{row(engine.Sleeping, ""), answer{denied, DenialSleeping}, answer{denied, DenialSleeping}, answer{woken, ""}, answer{woken, ""}},
		{row(engine.Stopped, ""), answer{denied, DenialStopped}, answer{denied, DenialStopped}, answer{denied, DenialStopped}, answer{denied, DenialStopped}},
		{row(engine.Failed, ""), answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}},
		{row(engine.Destroying, engine.OpDestroy), answer{denied, DenialDestroying}, answer{denied, DenialDestroying}, answer{denied, DenialDestroying}, answer{denied, DenialDestroying}},
	} {
		for opts, want := range map[AdmitOptions]answer{neither: c.neither, provision: c.provision, wake: c.wake, both: c.both} {
			if way, denial := decide(c.row, opts); way != want.way || denial != want.Denial {
				t.Errorf("%+v, %+v: got %v %q, want %v", c.row, opts, way, denial, fmt.Sprint(want))
			}
		}
	}
}
