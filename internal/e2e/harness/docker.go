package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
)

// Driver is one of the two task drivers that run engines.
type Driver struct {
	Name string
	vars map[string]string
}

// RawExec runs engines as processes.
var RawExec = Driver{Name: "raw_exec"}

// Docker runs engines as containers.
var Docker = Driver{Name: "docker", vars: map[string]string{
	"ORCH_ENGINE_DRIVER": "docker", "ORCH_ENGINE_IMAGE": DockerImage, "ORCH_ENGINE_BIN_DIR": "", "ORCH_SNAPSHOT_WORKER": WorkerImage,
}}

// DockerImage is the reference engine without switches.
const DockerImage = "orch/reference-engine:1"

// WorkerImage is the worker of snapshots. Make engine-image builds it.
const WorkerImage = "orch/orch-brain:1"

// Image returns the reference engine's image with a switch, or "" without one.
func (d Driver) Image(name string) string {
	switch {
	case d.Name == Docker.Name && name == "":
		return DockerImage
	case d.Name == Docker.Name:
		return "orch/reference-engine:" + name
	case name == "":
		return "reference-engine"
	}
	return "reference-engine." + name
}

// With returns a service's configuration for this driver.
func (d Driver) With(vars map[string]string) map[string]string {
	all := maps.Clone(vars)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, d.vars)
	return all
}

// Environ returns the same in the form of os.Environ.
func (d Driver) Environ() []string {
	var env []string
	for name, value := range d.vars {
		env = append(env, name+"="+value)
	}
	return env
}

// EachDriver runs a test with raw_exec and with docker.
func EachDriver(t *testing.T, test func(*testing.T, Driver)) {
	t.Parallel()
	for _, d := range []Driver{RawExec, Docker} {
		t.Run(d.Name, func(t *testing.T) {
			if d.Name == Docker.Name {
				NeedDocker(t)
			}
			test(t, d)
		})
	}
}

// NeedDocker skips a test if there is no docker engine; in CI the test fails.
func NeedDocker(t *testing.T) {
	t.Helper()
	switch {
	case os.Getenv("DOCKER_HOST") != "":
	case os.Getenv("CI") == "true":
		t.Fatal("DOCKER_HOST is not set")
	default:
		t.Skip("no docker engine: export DOCKER_HOST=$(tools/dockerd.sh start DIR) as root, then make engine-image")
	}
}

// Container is the output of docker inspect for a container.
type Container struct {
	ID     string `json:"Id"`
	State  struct{ Pid int }
	Config struct {
		Image string
		Env   []string
	}
	HostConfig struct {
		Runtime   string
		Memory    int64
		CPUShares int64 `json:"CpuShares"`
	}
}

// Inspect returns the container of an engine, found by its allocation's port.
func Inspect(t *testing.T, e *client.Engine) Container {
	t.Helper()
	return inspect(t, os.Getenv("DOCKER_HOST"), e)
}

// inspect is Inspect of the docker daemon at an address.
func inspect(t *testing.T, daemon string, e *client.Engine) Container {
	t.Helper()
	port := e.URL[strings.LastIndexByte(e.URL, ':')+1:]
	out, err := exec.Command("docker", "-H", daemon, "ps", "-q", "--filter", "publish="+port).Output()
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(out))
	if out, err = exec.Command("docker", "-H", daemon, "inspect", id).Output(); err != nil {
		t.Fatalf("inspect %q: %v", id, err)
	}
	var found []Container
	if err := json.Unmarshal(out, &found); err != nil || len(found) != 1 {
		t.Fatalf("inspect %q: %d containers, %v", id, len(found), err)
	}
	return found[0]
}

// Pids returns the pids of all processes of the machine.
func Pids() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Containers returns the pids of an engine's processes, whether or not Nomad knows them.
func Containers(engineID string) (of []int) {
	mark := []byte("NOMAD_JOB_ID=engine-" + engineID + "\x00")
	for _, pid := range Pids() {
		if env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); bytes.Contains(env, mark) {
			of = append(of, pid)
		}
	}
	return of
}

// ServiceImage makes an image of the service's binary, as a release has it, and returns its
// tag.
func ServiceImage(t *testing.T, binary string) string {
	t.Helper()
	tag := "orch/" + filepath.Base(binary) + ":test"
	tar := exec.Command("tar", "-C", filepath.Dir(binary), "--owner=0", "--group=0", "-cf", "-", filepath.Base(binary))
	load := exec.Command("docker", "import", "--change", "USER 65532:65532", "--change", fmt.Sprintf("ENTRYPOINT [%q]", "/"+filepath.Base(binary)), "-", tag)
	pipe, err := tar.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	load.Stdin = pipe
	if err := tar.Start(); err != nil {
		t.Fatal(err)
	}
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v\n%s", err, out)
	}
	if err := tar.Wait(); err != nil {
		t.Fatal(err)
	}
	return tag
}
