package scheduler

import (
	"fmt"
	"testing"

	"github.com/septemberai/orch/registry"
)

func TestDecide(t *testing.T) {
	neither, provision, wake := AdmitOptions{}, AdmitOptions{AutoProvision: true}, AdmitOptions{AutoWake: true}
	both := AdmitOptions{AutoProvision: true, AutoWake: true}
	row := func(state registry.State, op registry.OpKind) *registry.Engine {
		e := &registry.Engine{State: state}
		if op != "" {
			e.Op = &registry.Op{Kind: op}
		}
		return e
	}
	type answer struct {
		way
		Denial
	}
	for _, c := range []struct {
		row                            *registry.Engine
		neither, provision, wake, both answer
	}{
		{nil, answer{denied, DenialNotFound}, answer{provisioned, ""}, answer{denied, DenialNotFound}, answer{provisioned, ""}},
		{row(registry.Running, ""), answer{admitted, ""}, answer{admitted, ""}, answer{admitted, ""}, answer{admitted, ""}},
		{row(registry.Running, registry.OpRotateKey), answer{rotating, ""}, answer{rotating, ""}, answer{rotating, ""}, answer{rotating, ""}},
		{row(registry.Failed, registry.OpRotateKey), answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}},
		{row(registry.Running, registry.OpRestart), answer{joined, ""}, answer{joined, ""}, answer{joined, ""}, answer{joined, ""}},
		{row(registry.Running, registry.OpStop), answer{denied, DenialStopped}, answer{denied, DenialStopped}, answer{denied, DenialStopped}, answer{denied, DenialStopped}},
		{row(registry.Running, registry.OpSleep), answer{denied, DenialSleeping}, answer{denied, DenialSleeping}, answer{joined, ""}, answer{joined, ""}},
		{row(registry.Provisioning, registry.OpRecover), answer{denied, DenialProvisioning}, answer{joined, ""}, answer{joined, ""}, answer{joined, ""}},
		{row(registry.Provisioning, registry.OpProvision), answer{denied, DenialProvisioning}, answer{joined, ""}, answer{joined, ""}, answer{joined, ""}},
		{row(registry.Provisioning, registry.OpStart), answer{denied, DenialProvisioning}, answer{joined, ""}, answer{joined, ""}, answer{joined, ""}},
		{row(registry.Sleeping, ""), answer{denied, DenialSleeping}, answer{denied, DenialSleeping}, answer{woken, ""}, answer{woken, ""}},
		{row(registry.Stopped, ""), answer{denied, DenialStopped}, answer{denied, DenialStopped}, answer{denied, DenialStopped}, answer{denied, DenialStopped}},
		{row(registry.Failed, ""), answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}, answer{denied, DenialUnhealthy}},
		{row(registry.Destroying, registry.OpDestroy), answer{denied, DenialDestroying}, answer{denied, DenialDestroying}, answer{denied, DenialDestroying}, answer{denied, DenialDestroying}},
	} {
		for opts, want := range map[AdmitOptions]answer{neither: c.neither, provision: c.provision, wake: c.wake, both: c.both} {
			if way, denial := decide(c.row, opts); way != want.way || denial != want.Denial {
				t.Errorf("%+v, %+v: got %v %q, want %v", c.row, opts, way, denial, fmt.Sprint(want))
			}
		}
	}
}
