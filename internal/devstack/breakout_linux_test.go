package devstack

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	nomadapi "github.com/hashicorp/nomad/api"
)

// TestBreakOut: on a locked stack, the task API gives an engine nothing but the variable of
// its own job. Without ACLs, the same engine registers a job that runs as root: that is
// why the service refuses such a Nomad.
func TestBreakOut(t *testing.T) {
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "breakout"), "./testdata/breakout")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Run("Locked", func(t *testing.T) {
		s := startStack(t, Config{Locked: true, DockerSocket: os.Getenv("DOCKER_HOST")})
		for what, status := range breakOut(t, s, bin) {
			own := what == "its own variable, its identity"
			if refused := strings.HasPrefix(status, "403") || strings.HasPrefix(status, "401"); own == refused || own && !strings.HasPrefix(status, "200") {
				t.Errorf("%s: %s", what, status)
			}
		}
	})
	t.Run("Open", func(t *testing.T) {
		tries := breakOut(t, startStack(t, Config{DockerSocket: os.Getenv("DOCKER_HOST")}), bin)
		for _, what := range []string{"run as root", "another's variable"} {
			if status := tries[what+", any UUID"]; !strings.HasPrefix(status, "200") {
				t.Errorf("%s: %s; if Nomad refuses it by now, the service need not", what, status)
			}
		}
	})
}

// breakOut runs testdata/breakout and returns what it tried, with what came of it: as a
// container if there is docker, and otherwise as a process of the user nobody.
func breakOut(t *testing.T, s *Stack, bin string) map[string]string {
	t.Helper()
	client, err := nomadClient(s)
	if err != nil {
		t.Fatal(err)
	}
	const name = "engine-breaks-out"
	for _, job := range []string{name, "engine-other"} {
		v := &nomadapi.Variable{Path: "nomad/jobs/" + job, Items: nomadapi.VariableItems{"key_hash": "h"}}
		if _, _, err := client.Variables().Create(v, nil); err != nil {
			t.Fatal(err)
		}
	}
	job := rawExecJob(name, "")
	task := job.TaskGroups[0].Tasks[0]
	task.Identities = []*nomadapi.WorkloadIdentity{{Name: "default", Env: true}}
	if s.cfg.DockerSocket != "" {
		const image = "orch/breakout:1"
		if err := os.WriteFile(filepath.Join(bin, "Dockerfile"), []byte("FROM scratch\nCOPY breakout /breakout\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("docker", "build", "-q", "-t", image, bin).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		task.Driver, task.User = "docker", "65532:65532"
		task.Config = map[string]any{
			"image": image, "entrypoint": []string{"/breakout"}, "force_pull": false,
			"readonly_rootfs": true, "cap_drop": []string{"ALL"}, "security_opt": []string{"no-new-privileges"},
		}
	} else {
		task.Config = map[string]any{"command": filepath.Join(bin, "breakout")}
		if os.Getuid() == 0 {
			task.User = "nobody"
			// Everybody may enter, as the directories of a container are entered.
			for _, dir := range []string{filepath.Dir(bin), bin, s.Dir, s.path(NomadClient(0), "")} {
				if err := os.Chmod(dir, 0o711); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	var report struct {
		UID   int
		Tries map[string]string
	}
	eventually(t, func() string {
		files, err := filepath.Glob(filepath.Join(s.path(NomadClient(0), ""), "alloc", "*", "alloc", "data", "tries"))
		if err != nil || len(files) == 0 {
			allocs, _, _ := client.Jobs().Allocations(name, true, nil)
			for _, a := range allocs {
				for _, state := range a.TaskStates {
					if n := len(state.Events); n > 0 {
						return state.Events[n-1].DisplayMessage
					}
				}
			}
			return "it does not run"
		}
		text, err := os.ReadFile(files[0])
		if err == nil {
			err = json.Unmarshal(text, &report)
		}
		if err != nil {
			t.Fatal(err)
		}
		return ""
	})
	if report.UID == 0 || len(report.Tries) != 9 {
		t.Fatalf("user %d made %d tries, want 9 of a user that is not root", report.UID, len(report.Tries))
	}
	t.Logf("user %d: %v", report.UID, report.Tries)
	return report.Tries
}
