// Package engine is the domain: what is true of an engine wherever it is stored. It imports
// no other package of orch.
package engine

// The reasons in the row of a failed engine.
const (
	ReasonImage       = "image_error"
	ReasonBootTimeout = "boot_timeout"
	// ReasonPull: the node was still pulling the image at the deadline.
	ReasonPull    = "image_pull"
	ReasonCrashed = "crashed"
	// ReasonMemory: the kernel killed the process at its memory limit. ReasonDriver: the
	// node's task driver could not start it, although the image is not the cause.
	ReasonMemory    = "out_of_memory"
	ReasonDriver    = "driver_error"
	ReasonUnhealthy = "unhealthy"
	ReasonNodeDown  = "node_down"
	// ReasonUpstream is the reason of a running engine that reports that it cannot serve
	// because of a dependency (Options.RestartSubsystems).
	ReasonUpstream = "upstream_down"
	// ReasonKeyProof: the engine breaks the contract of the key proof.
	// ReasonKeyUnconfirmed: the engine did not accept its new key; its next process must.
	// ReasonCertificate: the process at its address does not have its certificate.
	ReasonKeyProof       = "key_proof"
	ReasonCertificate    = "certificate"
	ReasonKeyUnconfirmed = "key_unconfirmed"
	ReasonJobMissing     = "job_missing"
	// ReasonInterrupted: nobody continued the provision of the engine.
	// ReasonRecovered: the row was rebuilt, and the engine's process is being checked.
	// ReasonBrainMissing: nothing of the engine exists outside the registry.
	ReasonInterrupted  = "interrupted"
	ReasonRecovered    = "recovered"
	ReasonBrainMissing = "brain_missing"
	// ReasonVolumeUnknown: Nomad no longer knows the volume. ReasonAdopted: the engine got
	// a volume again (AdoptNode), and must be started.
	ReasonVolumeUnknown = "volume_unknown"
	ReasonAdopted       = "adopted"
)
