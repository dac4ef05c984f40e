// Package commands contains the commands of the executable orch: orch server, and those
// that call the service.
package commands

import "github.com/septemberai/orch/internal/cmdline"

//go:generate go run ./document ../../../../docs/cli.md

// Program returns the executable orch.
func Program() *cmdline.Program {
	p := &cmdline.Program{Name: "orch", Groups: []cmdline.Group{
		{Name: "engine", Synopsis: "Create, find and change engines"},
		{Name: "snapshot", Synopsis: "Take, list, delete and import snapshots of brains"},
		{Name: "product", Synopsis: "Register and change products (for the admin)"},
		{Name: "audit", Synopsis: "Read the audit log"},
		{Name: "context", Synopsis: "Select which service is called, and the sources of its keys"},
		{Name: "node", Synopsis: "List the nodes, evacuate one, and repair the engines of one (for the admin)"},
		{Name: "provider-keys", Synopsis: "Apply new provider keys, and show the progress (for the admin)"},
		{Name: "registry", Synopsis: "Show the state of the registry, and rebuild it (for the admin)"},
		{Name: "volume", Synopsis: "List and forget unreachable volumes of destroyed engines (for the admin)"},
	}}
	for _, build := range []func() *spec{
		engineProvision, engineAdmit, engineShow, engineList, engineStart, engineStop, engineWait, engineWatch, engineRotateKey, engineKeepAwake, engineRestore, engineFork, engineDestroy,
		engineQuarantine, engineAdopt, engineDiscard, engineRekey,
		snapshotTake, snapshotList, snapshotDelete, snapshotImport,
		productRegister, productList, productShow, productPolicy, productRotateKey, productDelete,
		auditTail,
		nodeList, nodeAdopt, nodeEvacuate, providerKeysStatus, providerKeysApply, registryStatus, registryRecover, volumeList, volumeForget,
		status, reconcile,
	} {
		p.Commands = append(p.Commands, func(env *cmdline.Env) *cmdline.Command { return build().command(env) })
	}
	p.Commands = append(p.Commands, contextList, contextUse, contextAdd, contextRemove, completion, server)
	return p
}
