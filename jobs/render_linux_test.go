package jobs

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"
	"pgregory.net/rapid"
)

func render(t interface{ Fatal(...any) }, tmpl *Template, e Engine) *api.Job {
	job, err := tmpl.Render(e)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// TestRender: each field of the engine is where Nomad reads it.
func TestRender(t *testing.T) {
	for _, driver := range drivers {
		t.Run(string(driver), func(t *testing.T) {
			job := render(t, parsed(t, settings(driver)), engine("u"))
			group, task := job.TaskGroups[0], job.TaskGroups[0].Tasks[0]
			constraint := group.Constraints[len(group.Constraints)-1]
			got := []any{*job.ID, *job.Name, *job.Namespace, *job.NodePool, job.Meta, *group.Count, group.Volumes["brain"].Source,
				constraint.LTarget, constraint.Operand, constraint.RTarget, *task.Resources.CPU, *task.Resources.MemoryMB, job.UI.Description}
			want := []any{"engine-e1", "engine-e1", "default", "engines", map[string]string{"deployment": "orch", "deployment_id": "d1", "engine_id": "e1", "product": "acme"}, 1, "engine-e1",
				"${node.unique.id}", "=", engine("u").NodeID, 123, 456, "Engine of user `\"u\"` of product `\"acme\"`"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			service := append(slices.Clone(group.Services), task.Services...)[0]
			if diff := cmp.Diff(map[string]string{"engine_id": "e1", "product_id": "p1", "user_id_b64": "dQ", "key_checksum": "${ENGINE_KEY_CHECKSUM}"}, service.Meta); diff != "" || service.Name != "engine-e1" {
				t.Errorf("service %s: %s", service.Name, diff)
			}
			if driver == Docker && (task.Config["image"] != "engine" || task.Config["force_pull"] != nil || *group.EphemeralDisk.SizeMB != 20) {
				t.Errorf("config is %v", task.Config)
			}
			if driver == RawExec && (executable(task) != "/opt/engines/engine" || Describe(job).Image != "engine" || task.Env["SQLITE_DB_PATH"] != "/volumes/e1/brain.sqlite") {
				t.Errorf("config is %v, env is %v", task.Config, task.Env)
			}
		})
	}
	t.Run("registered volume", func(t *testing.T) {
		e := engine("u")
		e.VolumeName = "engine-e1.r2"
		job := render(t, parsed(t, settings(Docker)), e)
		if source, said := job.TaskGroups[0].Volumes["brain"].Source, Describe(job).VolumeName; source != e.VolumeName || said != e.VolumeName {
			t.Errorf("it claims %q and contains %q", source, said)
		}
	})
	t.Run("resolved image", func(t *testing.T) {
		const digest = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
		e := engine("u")
		e.Image, e.Digest = "r.example:5000/engine", digest
		job := render(t, parsed(t, settings(Docker)), e)
		config := job.TaskGroups[0].Tasks[0].Config
		if _, pulls := config["force_pull"]; pulls || config["image"] != "r.example:5000/engine@"+digest {
			t.Errorf("config is %v", config)
		}
		Label(job, engine("somebody else"))
		if said := Describe(job); said.Image != e.Image || said.Digest != digest || said.UserID != "somebody else" {
			t.Errorf("it contains %+v", said)
		}
		e.Image = e.Image + "@" + digest // named like this by its caller
		if said := Describe(render(t, parsed(t, settings(Docker)), e)); said.Image != e.Image || said.Digest != digest {
			t.Errorf("it contains %+v", said)
		}
		e.Image, e.Digest = "engine:1", ""
		if said := Describe(render(t, parsed(t, settings(Docker)), e)); said.Image != e.Image || said.Digest != "" {
			t.Errorf("it contains %+v", said)
		}
	})
	t.Run("isolation", func(t *testing.T) {
		for isolation, runtime := range map[string]any{"": nil, "runc": "runc", "gvisor": "runsc", "kata": "kata"} {
			e := engine("u")
			e.Isolation = isolation
			job := render(t, parsed(t, settings(Docker)), e)
			var of []string
			for _, c := range job.TaskGroups[0].Constraints {
				if c.LTarget == "${attr.driver.docker.runtimes}" {
					of = append(of, c.Operand+" "+c.RTarget)
				}
			}
			var want []string
			if isolation != "" {
				want = []string{"set_contains " + Runtime(isolation)}
			}
			if got := job.TaskGroups[0].Tasks[0].Config["runtime"]; got != runtime || !slices.Equal(of, want) {
				t.Errorf("%q: the runtime is %v, and the constraints are %q", isolation, got, of)
			}
			if said := Describe(job); said.Isolation != isolation {
				t.Errorf("%q: it contains %q", isolation, said.Isolation)
			}
		}
	})
	t.Run("stopped, default pool, pinned image", func(t *testing.T) {
		e := engine("u")
		e.Count, e.NodePool, e.Image = 0, "", "engine:1"
		job := render(t, parsed(t, settings(Docker)), e)
		if _, pulls := job.TaskGroups[0].Tasks[0].Config["force_pull"]; pulls || *job.TaskGroups[0].Count != 0 || job.NodePool != nil {
			t.Errorf("force_pull %t, count %d, pool %v", pulls, *job.TaskGroups[0].Count, job.NodePool)
		}
	})
}

// TestUserIsNeverInterpolated: only the ui block, which Nomad does not interpolate, job meta
// without a dollar sign, and one base64url word depend on the user.
func TestUserIsNeverInterpolated(t *testing.T) {
	word := regexp.MustCompile(`\A[A-Za-z0-9_-]+\z`)
	for _, driver := range drivers {
		t.Run(string(driver), func(t *testing.T) {
			s := settings(driver)
			s.UserMeta = UserPlain
			tmpl := parsed(t, s)
			plain := withoutUser(render(t, tmpl, engine("plain")))
			rapid.Check(t, func(t *rapid.T) {
				e := engine(anyUser.Draw(t, "user_id"))
				e.ProductName = anyUser.Draw(t, "product")
				job := render(t, tmpl, e)
				encoded := job.TaskGroups[0].Tasks[0].Services[0].Meta["user_id_b64"]
				back, err := base64.RawURLEncoding.DecodeString(encoded)
				if err != nil || string(back) != e.UserID || !word.MatchString(encoded) {
					t.Fatalf("%q is encoded as %q", e.UserID, encoded)
				}
				if strings.Contains(job.UI.Description+job.Meta["product"]+job.Meta["user"], "$") || len(job.UI.Description) > 1000 {
					t.Fatalf("the ui block contains %s", job.UI.Description)
				}
				if diff := cmp.Diff(plain, withoutUser(job)); diff != "" {
					t.Fatalf("another place knows the user:\n%s", diff)
				}
			})
		})
	}
}

func withoutUser(job *api.Job) *api.Job {
	job.UI = nil
	delete(job.Meta, "product")
	delete(job.Meta, "user")
	delete(job.TaskGroups[0].Tasks[0].Services[0].Meta, "user_id_b64")
	return job
}

// TestNomadTakesTheJob: Nomad accepts the job of every user, including the longest and
// strangest ids.
func TestNomadTakesTheJob(t *testing.T) {
	c := nomadClient(t)
	for _, driver := range drivers {
		t.Run(string(driver), func(t *testing.T) {
			s := settings(driver)
			s.ProviderKeysPath = "" // otherwise Nomad's validation requires Vault's configuration
			tmpl := parsed(t, s)
			rapid.Check(t, func(t *rapid.T) {
				e := engine(anyUser.Draw(t, "user_id"))
				e.NodePool = ""
				resp, _, err := c.Jobs().Validate(render(t, tmpl, e), nil)
				if err != nil {
					t.Fatal(err)
				}
				if resp.Error != "" || len(resp.ValidationErrors) > 0 {
					t.Fatalf("user %q: %s %v", e.UserID, resp.Error, resp.ValidationErrors)
				}
			})
		})
	}
}

// TestRenderLeavesTheTemplateAlone: changes of a rendered job do not affect the template.
func TestRenderLeavesTheTemplateAlone(t *testing.T) {
	for _, driver := range drivers {
		t.Run(string(driver), func(t *testing.T) {
			tmpl := parsed(t, settings(driver))
			// Compared as text, because jobs that share something would change together.
			first := render(t, tmpl, engine("a"))
			want := text(t, first)
			if diff := cmp.Diff(want, text(t, render(t, tmpl, engine("a")))); diff != "" {
				t.Fatal(diff)
			}
			other := engine("b")
			other.JobID, other.Image, other.Count, other.CPUMHz = "engine-e2", "other:2", 0, 9
			spoil(render(t, tmpl, other))
			spoil(first)
			if diff := cmp.Diff(want, text(t, render(t, tmpl, engine("a")))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func text(t *testing.T, job *api.Job) string {
	t.Helper()
	b, err := json.MarshalIndent(job, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// spoil writes into everything that copies could share.
func spoil(job *api.Job) {
	group, task := job.TaskGroups[0], job.TaskGroups[0].Tasks[0]
	job.Meta["x"], task.Env["x"], task.Config["x"], task.Services[0].Meta["x"] = "x", "x", "x", "x"
	*group.Count, *group.Name, *task.Resources.CPU, *group.RestartPolicy.Mode = 99, "x", 99, "x"
	group.Constraints = append(group.Constraints[:0], nil)
	group.Volumes["brain"].Source, task.Templates[0].EmbeddedTmpl, task.Services[0].Checks[0].Path = "x", nil, "x"
}

// TestNoKeyInTheJob: the job refers to secrets, but contains none.
func TestNoKeyInTheJob(t *testing.T) {
	for _, driver := range drivers {
		for _, reload := range []string{"restart", "signal"} {
			s := settings(driver)
			s.KeyReload = reload
			job := render(t, parsed(t, s), engine("u"))
			task := job.TaskGroups[0].Tasks[0]
			want := []string{"CATALOG_DIR", "PORT", "SQLITE_DB_PATH"}
			if reload == "signal" {
				want = []string{"CATALOG_DIR", "ENGINE_KEY_HASH_FILE", "PORT", "SQLITE_DB_PATH"}
			}
			if diff := cmp.Diff(want, slices.Sorted(maps.Keys(task.Env))); diff != "" {
				t.Errorf("%s, %s: environment: %s", driver, reload, diff)
			}
			for _, tmpl := range task.Templates {
				if !regexp.MustCompile(`\A(ENGINE_KEY_HASH=)?\{\{ with (nomadVar|secret) .*\{\{ end \}\}\n?\z`).MatchString(strings.ReplaceAll(*tmpl.EmbeddedTmpl, "\n", "")) {
					t.Errorf("a template is %q", *tmpl.EmbeddedTmpl)
				}
				if !strings.HasPrefix(*tmpl.DestPath, "${NOMAD_SECRETS_DIR}/") {
					t.Errorf("a secret is written to %s", *tmpl.DestPath)
				}
			}
			if task.Vault == nil || task.Vault.Env == nil || *task.Vault.Env || task.Vault.DisableFile == nil || !*task.Vault.DisableFile {
				t.Errorf("the process sees the Vault token: %+v", task.Vault)
			}
			if found := regexp.MustCompile(`(?i)[sp]k-sept-|hvs\.|[0-9a-f]{64}`).FindString(text(t, job)); found != "" {
				t.Errorf("the job holds %q", found)
			}
		}
	}
}

// TestSettingsAreThemselves: a path with HCL syntax in it stays unchanged, except for
// Unicode composition: HCL converts every string to NFC.
func TestSettingsAreThemselves(t *testing.T) {
	c := nomadClient(t)
	rapid.Check(t, func(rt *rapid.T) {
		s := settings(RawExec)
		s.CatalogPath = "/" + syntax.Draw(rt, "path")
		tmpl, err := Parse(t.Context(), c, s)
		if err != nil {
			rt.Fatal(err)
		}
		if got := render(rt, tmpl, engine("u")).TaskGroups[0].Tasks[0].Env["CATALOG_DIR"]; got != s.CatalogPath {
			rt.Fatalf("%q became %q", s.CatalogPath, got)
		}
	})
}
