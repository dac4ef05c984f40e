// Package engine is the domain: what is said of an engine whatever it is stored in. It
// imports nothing of ours.
package engine

// The reasons that a failed engine's row can give.
const (
	ReasonImage       = "image_error"
	ReasonBootTimeout = "boot_timeout"
	// ReasonPull: its node was still pulling its image at the deadline.
	ReasonPull    = "image_pull"
	ReasonCrashed = "crashed"
	// ReasonMemory: the kernel killed it at its memory limit. ReasonDriver: its node's
	// task driver could not start it, through no fault of its image.
	ReasonMemory    = "out_of_memory"
	ReasonDriver    = "driver_error"
	ReasonUnhealthy = "unhealthy"
	ReasonNodeDown  = "node_down"
	// ReasonUpstream is a running engine's, which says that it cannot serve for what it
	// depends on (Options.RestartSubsystems).
	ReasonUpstream = "upstream_down"
	// ReasonKeyProof: it breaks the contract of the proof. ReasonKeyUnconfirmed: it
	// did not take its new key, and its next process is to.
	ReasonKeyProof       = "key_proof"
	ReasonKeyUnconfirmed = "key_unconfirmed"
	ReasonJobMissing     = "job_missing"
	// ReasonRecovered: its row was rebuilt, and its process is looked for.
	// ReasonBrainMissing: there is nothing outside the registry that its row could
	// be of.
	ReasonRecovered    = "recovered"
	ReasonBrainMissing = "brain_missing"
	// ReasonVolumeUnknown: Nomad does not know its volume any more. ReasonAdopted: it
	// got a volume again (AdoptNode), and is to be started.
	ReasonVolumeUnknown = "volume_unknown"
	ReasonAdopted       = "adopted"
)
