// Package commands is the commands of the executable orch: those that call the
// service, and the one that is it.
package commands

import "github.com/septemberai/orch/internal/cmdline"

//go:generate go run ./document ../../../../docs/cli.md

// Program is the executable orch.
func Program() *cmdline.Program {
	p := &cmdline.Program{Name: "orch", Groups: []cmdline.Group{
		{Name: "engine", Synopsis: "Make, find and change engines"},
		{Name: "product", Synopsis: "Register and change products (for the admin)"},
		{Name: "audit", Synopsis: "Read the audit log"},
		{Name: "context", Synopsis: "Say which service is called, and where its keys are"},
		{Name: "node", Synopsis: "Repair what is on a node (for the admin)"},
		{Name: "provider-keys", Synopsis: "See and apply new provider keys (for the admin)"},
		{Name: "registry", Synopsis: "See the state of the registry, and rebuild it (for the admin)"},
		{Name: "volume", Synopsis: "See and forget what destroyed engines left on lost nodes (for the admin)"},
	}}
	for _, build := range []func() *spec{
		engineProvision, engineAdmit, engineShow, engineList, engineStart, engineStop, engineWait, engineWatch, engineRotateKey, engineKeepAwake, engineDestroy,
		engineQuarantine, engineAdopt, engineDiscard, engineRekey,
		productRegister, productList, productShow, productPolicy, productRotateKey, productDelete,
		auditTail,
		nodeAdopt, providerKeysStatus, providerKeysApply, registryStatus, registryRecover, volumeList, volumeForget,
		status, reconcile,
	} {
		p.Commands = append(p.Commands, func(env *cmdline.Env) *cmdline.Command { return build().command(env) })
	}
	p.Commands = append(p.Commands, contextList, contextUse, contextAdd, contextRemove, completion, server)
	return p
}
