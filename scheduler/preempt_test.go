package scheduler

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// In any situation on a node, warm engines are removed only if that makes room, and then
// only as many as necessary, in their order.
func TestInTheWay(t *testing.T) {
	resources := func(t *rapid.T, name string) engine.Resources {
		return engine.Resources{CPUMHz: rapid.IntRange(1, 100).Draw(t, name+" cpu"), MemoryMB: rapid.IntRange(1, 100).Draw(t, name+" memory")}
	}
	const disk = 20
	freed := func(node cluster.Node, rows []*engine.Row) cluster.Node {
		for _, row := range rows {
			node.FreeCPUMHz += row.Resources.CPUMHz
			node.FreeMemoryMB += row.Resources.MemoryMB
			node.FreeDiskMB += disk
			node.FreePorts++
		}
		return node
	}
	rapid.Check(t, func(t *rapid.T) {
		node := cluster.Node{
			FreeCPUMHz: rapid.IntRange(-50, 150).Draw(t, "cpu"), FreeMemoryMB: rapid.IntRange(-50, 150).Draw(t, "memory"),
			FreePorts: rapid.IntRange(0, 2).Draw(t, "ports"), FreeDiskMB: rapid.IntRange(-50, 50).Draw(t, "disk"),
		}
		var warm []*engine.Row
		for range rapid.IntRange(0, 6).Draw(t, "warm") {
			warm = append(warm, &engine.Row{
				State: rapid.SampledFrom([]engine.State{engine.Running, engine.Provisioning}).Draw(t, "state"), Resources: resources(t, "warm"),
			})
		}
		ask := need{resources(t, "ask"), disk}
		going := inTheWay(node, warm, ask)
		if len(going) == 0 {
			if len(warm) > 0 && hasRoom(freed(node, warm), ask, 1) {
				t.Fatal("nothing is removed, but all of them would make room")
			}
			return
		}
		if !hasRoom(freed(node, going), ask, 1) {
			t.Error("they are removed, but there is not enough room")
		}
		if before := going[:len(going)-1]; len(before) > 0 && hasRoom(freed(node, before), ask, 1) {
			t.Error("more of them are removed than necessary")
		}
		for i := range going[1:] {
			if going[i].State == engine.Running && going[i+1].State == engine.Provisioning {
				t.Error("a ready one is removed before one that is being started")
			}
		}
	})
}
