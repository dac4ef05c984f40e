package e2e

import (
	"maps"
	"os"
	"testing"
)

// driver is one of the two ways in which engines run.
type driver struct {
	name string
	vars map[string]string
}

var (
	rawExec = driver{name: "raw_exec"}
	docker  = driver{name: "docker", vars: map[string]string{
		"ORCH_ENGINE_DRIVER": "docker", "ORCH_ENGINE_IMAGE": dockerImage, "ORCH_ENGINE_BIN_DIR": "",
	}}
)

const dockerImage = "orch/reference-engine:1"

// image names the reference engine with a switch of its own, or "" with none.
func (d driver) image(name string) string {
	switch {
	case d.name == docker.name && name == "":
		return dockerImage
	case d.name == docker.name:
		return "orch/reference-engine:" + name
	case name == "":
		return "reference-engine"
	}
	return "reference-engine." + name
}

// with is a service's configuration for this driver.
func (d driver) with(vars map[string]string) map[string]string {
	all := maps.Clone(vars)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, d.vars)
	return all
}

// environ is that as a process gets it.
func (d driver) environ() []string {
	var env []string
	for name, value := range d.vars {
		env = append(env, name+"="+value)
	}
	return env
}

// eachDriver runs a test with raw_exec and with docker.
func eachDriver(t *testing.T, test func(*testing.T, driver)) {
	t.Parallel()
	for _, d := range []driver{rawExec, docker} {
		t.Run(d.name, func(t *testing.T) {
			if d.name == docker.name {
				needDocker(t)
			}
			test(t, d)
		})
	}
}

// needDocker skips a test where no docker engine is, which CI does not allow.
func needDocker(t *testing.T) {
	t.Helper()
	switch {
	case os.Getenv("DOCKER_HOST") != "":
	case os.Getenv("CI") == "true":
		t.Fatal("DOCKER_HOST is not set")
	default:
		t.Skip("no docker engine: export DOCKER_HOST=$(tools/dockerd.sh start DIR) as root, then make engine-image")
	}
}
