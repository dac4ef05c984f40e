package engine

import (
	"cmp"
	"strconv"
	"strings"
)

// JobID is the name of everything that belongs to the engine outside the
// registry: its Nomad job and Consul service, and its host volume unless that was
// registered again (Volume).
func (r *Row) JobID() string { return JobID(r.EngineID) }

// JobID is the Nomad job, host volume and service name of an engine.
func JobID(engineID string) string { return JobPrefix + engineID }

// JobPrefix begins the name of every engine's job.
const JobPrefix = "engine-"

// Volume is the name of the engine's host volume.
func (r *Row) Volume() string { return cmp.Or(r.VolumeName, r.JobID()) }

// FreshVolumeName is a name for the engine's volume that was not chosen before:
// Nomad frees no name of a volume that it has lost.
func (r *Row) FreshVolumeName() string {
	n := 1
	for _, name := range []string{r.VolumeName, r.NextVolume} {
		if _, registration := VolumeOf(name); registration > n {
			n = registration
		}
	}
	return r.JobID() + registrationMark + strconv.Itoa(n+1)
}

// registrationMark stands between the first name of a volume and the number of its
// registration, which is 2 or more.
const registrationMark = ".r"

// VolumeOf is the engine_id in the name of a volume, and the number of its
// registration: 1 for the volume that Nomad made, more for one that was registered
// with a directory that there was; 0 when the name is not that of an engine's
// volume.
func VolumeOf(name string) (engineID string, registration int) {
	rest, found := strings.CutPrefix(name, JobPrefix)
	if !found || rest == "" {
		return "", 0
	}
	id, number, registered := strings.Cut(rest, registrationMark)
	if !registered {
		return rest, 1
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 2 || strconv.Itoa(n) != number || id == "" {
		return "", 0
	}
	return id, n
}
