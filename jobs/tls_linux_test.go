package jobs

import (
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"

	orch "github.com/septemberai/orch/engine"
)

const pkiPath = "pki-engines/issue/engine"

// tlsSettings are settings with which engines serve TLS and get nothing else from Vault.
func tlsSettings(driver Driver) Settings {
	s := settings(driver)
	s.ProviderKeysPath, s.PKIPath = "", pkiPath
	return s
}

func certificateTemplate(job *api.Job) *api.Template {
	for _, t := range job.TaskGroups[0].Tasks[0].Templates {
		if strings.Contains(*t.EmbeddedTmpl, "pki") {
			return t
		}
	}
	return nil
}

// TestServesTLS: the job of an engine that serves TLS has its certificate, and says so
// wherever a reader looks; a new label keeps that. Other jobs have nothing of it.
func TestServesTLS(t *testing.T) {
	for _, driver := range drivers {
		plain := render(t, parsed(t, settings(driver)), engine("u"))
		if certificateTemplate(plain) != nil || ServesTLS(plain) || Describe(plain).TLS {
			t.Error("a job without TLS has a certificate")
		}
		if c := engineServices(plain)[0].Checks[0]; c.Protocol != "" || c.TLSSkipVerify {
			t.Errorf("its check: %+v", c)
		}
		job := render(t, parsed(t, tlsSettings(driver)), engine("u"))
		Label(job, engine("another"))
		if !ServesTLS(job) || !Describe(job).TLS || engineServices(job)[0].Meta["scheme"] != "https" {
			t.Error("the job does not say that it serves TLS")
		}
		task, template := job.TaskGroups[0].Tasks[0], certificateTemplate(job)
		if template == nil || *template.ChangeMode != "noop" || *template.Perms != "0400" || *template.DestPath != task.Env["ENGINE_TLS_FILE"] {
			t.Fatalf("the template is %+v", template)
		}
		// The service verifies the name that the template asks for.
		if name := orch.ServerName("%s"); !strings.Contains(*template.EmbeddedTmpl, `"common_name=`+name+`" (env "NOMAD_JOB_ID")`) {
			t.Errorf("the template does not ask for %s: %s", name, *template.EmbeddedTmpl)
		}
		if owner := *template.Uid; driver == Docker && owner != 65532 || driver == RawExec && owner != -1 {
			t.Errorf("with %s the key belongs to %d", driver, owner)
		}
		if c := engineServices(job)[0].Checks[0]; c.Protocol != "https" || !c.TLSSkipVerify {
			t.Errorf("its check: %+v", c)
		}
		if task.Vault == nil || task.Vault.Role != "engine-tls" || *task.Vault.ChangeMode != "noop" {
			t.Errorf("its login in Vault: %+v", task.Vault)
		}
	}
}

// TestBrokenTLSRules: a job file that does not make engines serve TLS as the service expects
// it is refused.
func TestBrokenTLSRules(t *testing.T) {
	const data = `{{ with secret \"${var.pki_path}\"`
	for name, c := range map[string]struct{ old, by, names string }{
		"no certificate":    {data, `{{ with secret \"other\"`, "a template must get"},
		"change_mode":       {`          change_mode = "noop"` + "\n          perms", "          perms", "a renewed certificate restarts"},
		"no variable":       {`ENGINE_TLS_FILE =`, `OTHER_FILE =`, "ENGINE_TLS_FILE"},
		"check":             {`var.pki_path == "" ? "" : "https"`, `""`, `protocol "https"`},
		"check without TLS": {`var.pki_path == "" ? "" : "https"`, `"https"`, `protocol "https"`},
		"login restarts":    {vaultBlock, "          env          = false", "vault"},
	} {
		t.Run(name, func(t *testing.T) {
			s := tlsSettings(Docker)
			if name == "check without TLS" {
				s = settings(Docker)
			}
			s.HCL = edited(t, c.old, c.by)
			_, err := Parse(t.Context(), nomadClient(t), s)
			var rules *RulesError
			if !errors.As(err, &rules) || !strings.Contains(err.Error(), c.names) {
				t.Errorf("got %v, want an error that names %q", err, c.names)
			}
		})
	}
}
