package engine

import (
	"cmp"
	"strconv"
	"strings"
)

// JobID returns the name of everything that belongs to the engine outside the registry: its
// Nomad job, its Consul service, and its host volume unless that was registered again
// (Volume).
func (r *Row) JobID() string { return JobID(r.EngineID) }

// ServerName returns the name in the certificate of an engine, by the name of its job.
func ServerName(jobID string) string { return jobID + ".engine.orch" }

// TLSScheme begins the URLs of engines that serve TLS.
const TLSScheme = "https://"

// At returns the URL of the row's engine at an address (host:port).
func (r *Row) At(addr string) string {
	if r.TLS {
		return TLSScheme + addr
	}
	return "http://" + addr
}

// JobID returns the name of an engine's Nomad job, host volume and service.
func JobID(engineID string) string { return JobPrefix + engineID }

// JobPrefix is the prefix of the names of all engines' jobs.
const JobPrefix = "engine-"

// Volume returns the name of the engine's host volume.
func (r *Row) Volume() string { return cmp.Or(r.VolumeName, r.JobID()) }

// FreshVolumeName returns a new name for the engine's volume, whose directory is registered
// again. A used name cannot be used again, because Nomad never frees the names of lost
// volumes.
func (r *Row) FreshVolumeName() string { return r.freshName(registrationMark) }

// FreshRestoreName returns a new name for a volume of the engine that Nomad creates beside
// the present one.
func (r *Row) FreshRestoreName() string { return r.freshName(restoreMark) }

// FreshDrillName returns a new name for the volume of a restore drill.
func (r *Row) FreshDrillName() string { return r.freshName(drillMark) }

func (r *Row) freshName(mark string) string {
	n := 1
	for _, name := range []string{r.VolumeName, r.NextVolume} {
		if v, ok := ParseVolume(name); ok && v.Number > n {
			n = v.Number
		}
	}
	return r.JobID() + mark + strconv.Itoa(n+1)
}

// The mark separates the original name of a volume from its number, which is 2 or more.
const (
	registrationMark = ".r" // an existing directory that was registered
	restoreMark      = ".v" // a volume that Nomad created for a restore
	drillMark        = ".d" // one that a restore drill fills and removes, and which never is a brain
)

// VolumeName is what the name of an engine's volume says.
type VolumeName struct {
	EngineID string
	// Number orders the volumes of an engine, from 1 on.
	Number int
	// Registered: it is an existing directory that was registered, which Nomad does not
	// delete.
	Registered bool
	// Drill: it is the volume of a restore drill, which never is the engine's brain.
	Drill bool
}

// ParseVolume reads the name of a volume. ok is false if it is not that of an engine's
// volume.
func ParseVolume(name string) (v VolumeName, ok bool) {
	rest, found := strings.CutPrefix(name, JobPrefix)
	if !found || rest == "" {
		return VolumeName{}, false
	}
	for _, mark := range []string{registrationMark, restoreMark, drillMark} {
		id, number, marked := strings.Cut(rest, mark)
		if !marked {
			continue
		}
		n, err := strconv.Atoi(number)
		if err != nil || n < 2 || strconv.Itoa(n) != number || id == "" || strings.Contains(id, ".") {
			return VolumeName{}, false
		}
		return VolumeName{EngineID: id, Number: n, Registered: mark == registrationMark, Drill: mark == drillMark}, true
	}
	return VolumeName{EngineID: rest, Number: 1}, true
}
