package jobs

import (
	"strings"

	"github.com/hashicorp/nomad/api"
)

// schemeKey is the service meta with "https" if the job's processes serve TLS. It shows in
// Consul, too.
const schemeKey = "scheme"

// ServesTLS reports whether the processes of a job serve TLS.
func ServesTLS(job *api.Job) bool { return serviceMeta(job, schemeKey) == "https" }

// tlsFileVariable is the variable with the file that contains an engine's certificate, the
// chain and the key.
const tlsFileVariable = "ENGINE_TLS_FILE"

// checkTLS checks what engines need to serve TLS.
func checkTLS(task *api.Task, s Settings, need needFunc) {
	if s.PKIPath == "" {
		return
	}
	issued := false
	for _, t := range task.Templates {
		if !strings.Contains(str(t.EmbeddedTmpl), s.PKIPath) {
			continue
		}
		issued = true
		need(str(t.ChangeMode) == "noop", "the certificate template needs change_mode = \"noop\": otherwise a renewed certificate restarts the engine")
	}
	need(issued, "with ORCH_ENGINE_TLS=pki a template must get the engine's certificate from ORCH_ENGINE_PKI_PATH")
	need(task.Env[tlsFileVariable] != "", "with ORCH_ENGINE_TLS=pki the task's env must have %s", tlsFileVariable)
	need(vaultIsQuiet(task), "add vault { change_mode = \"noop\" }, because the default restarts the engine when it gets a new token")
}

func vaultIsQuiet(task *api.Task) bool {
	return task.Vault != nil && str(task.Vault.ChangeMode) == "noop"
}
