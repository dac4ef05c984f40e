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

// FreshVolumeName returns a new name for the engine's volume. A used name cannot be used
// again, because Nomad never frees the names of lost volumes.
func (r *Row) FreshVolumeName() string {
	n := 1
	for _, name := range []string{r.VolumeName, r.NextVolume} {
		if _, registration := VolumeOf(name); registration > n {
			n = registration
		}
	}
	return r.JobID() + registrationMark + strconv.Itoa(n+1)
}

// registrationMark separates the original name of a volume from the number of its
// registration, which is 2 or more.
const registrationMark = ".r"

// VolumeOf returns the engine_id in the name of a volume, and the number of its
// registration: 1 for a volume that Nomad created, more for an existing directory that was
// registered, 0 if the name is not that of an engine's volume.
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
