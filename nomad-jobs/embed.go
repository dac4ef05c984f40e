// Package nomadjobs holds the Nomad job files.
package nomadjobs

import _ "embed"

// Engine is the default job of an engine, in HCL2.
//
//go:embed engine.nomad.hcl
var Engine string

// Brain is the job of a worker that makes or restores a snapshot, in HCL2.
//
//go:embed brain.nomad.hcl
var Brain string
