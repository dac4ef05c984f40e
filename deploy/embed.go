// Package deploy contains the access policies that the service and its engines need in Nomad,
// Consul and Vault. Operators apply the files (docs/install.md), and internal/devstack uses
// them from this package, so that development and tests run with the same policies as
// production.
package deploy

import "embed"

// Policies holds vault/*.policy.hcl, consul/*.policy.hcl and nomad/*.policy.hcl
// under those names, vault/*.role.json and consul/*.binding-rule.json, by which engines and
// the service log in, vault/engine.pki-role.json, by which engines get certificates, and
// nomad/engines.namespace.hcl, the namespace of engines.
//
//go:embed vault/*.policy.hcl vault/*.role.json vault/*.pki-role.json consul/*.policy.hcl consul/*.binding-rule.json nomad/*.hcl
var Policies embed.FS
