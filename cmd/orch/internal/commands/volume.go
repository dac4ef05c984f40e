package commands

import (
	"context"
	"fmt"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func volumeList() *spec {
	return &spec{
		name: "volume list", needs: needsAdminKey, product: "only volumes of this `product`, by slug or id",
		synopsis: "List the volumes of destroyed engines that could not be deleted yet",
		about: `List the unreachable volumes, oldest first: those of destroyed engines that could
not be deleted yet, with the reason for each. When an unresponsive node is back, the
service deletes its volumes.`,
		examples: []string{"orch volume list", "orch volume list -product acme"},
		run: func(ctx context.Context, in *invocation) error {
			list, err := in.client.UnreachableVolumes(ctx)
			if err != nil {
				return err
			}
			if list.UnreachableVolumes, err = ofProduct(ctx, in, list.UnreachableVolumes, func(v client.UnreachableVolume) string { return v.ProductID }); err != nil {
				return err
			}
			if in.product != "" {
				list.Total = len(list.UnreachableVolumes)
			}
			t := &cmdline.Table{Empty: "no volume is unreachable"}
			t.Head("ENGINE", "SINCE", "PRODUCT", "USER", "NODE", "VOLUME", "PATH", "WHY")
			for _, v := range list.UnreachableVolumes {
				t.Row(v.EngineID, v.Since, v.ProductID, v.UserID, v.NodeID, v.VolumeID, v.VolumePath, v.Why)
			}
			return in.Show(list, t)
		},
	}
}

func volumeForget() *spec {
	return &spec{
		name: "volume forget", args: []string{"engine_id"}, needs: needsAdminKey,
		synopsis: "Forget the volume of a destroyed engine whose node is lost",
		about: `Forget the unreachable volume of a destroyed engine, because its node will not come
back, or because you have removed the directory. If the node comes back after all,
and Nomad knows the volume, it is removed as an orphan. "orch volume list" lists the
unreachable volumes.`,
		examples: []string{"orch volume forget kxojiu5ydmo2ndjwqkfmov3xjx"},
		ask: func(args []string) string {
			return fmt.Sprintf("Forget the volume of engine %s?", args[0])
		},
		run: func(ctx context.Context, in *invocation) error {
			if err := in.client.ForgetVolume(ctx, in.Args[0]); err != nil {
				return err
			}
			return in.ended("forgotten", [2]string{"Engine", in.Args[0]})
		},
	}
}
