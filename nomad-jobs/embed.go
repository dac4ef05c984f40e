// Package nomadjobs holds the Nomad job files.
package nomadjobs

import _ "embed"

// Engine is the default job of an engine, in HCL2.
//
//go:embed engine.nomad.hcl
var Engine string
