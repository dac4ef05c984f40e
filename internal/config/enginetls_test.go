package config

import (
	"slices"
	"testing"
)

// TestEngineTLS: engines serve TLS only if the service can verify them, and the authorities
// stay usable after it was turned off again.
func TestEngineTLS(t *testing.T) {
	ca, key := certificate(t)
	for name, c := range map[string]struct {
		vars []string
		want []string // the variables with mistakes
		path string   // that issues certificates
	}{
		"off":                  {nil, nil, ""},
		"off, from now on":     {[]string{"ORCH_ENGINE_CA_FILE=" + ca}, nil, ""},
		"pki":                  {[]string{"ORCH_ENGINE_TLS=pki", "ORCH_ENGINE_CA_FILE=" + ca}, nil, "pki-engines/issue/engine"},
		"another role":         {[]string{"ORCH_ENGINE_TLS=pki", "ORCH_ENGINE_CA_FILE=" + ca, "ORCH_ENGINE_PKI_PATH=a/b/issue/c"}, nil, "a/b/issue/c"},
		"no authorities":       {[]string{"ORCH_ENGINE_TLS=pki"}, []string{"ORCH_ENGINE_CA_FILE"}, ""},
		"a key as authorities": {[]string{"ORCH_ENGINE_TLS=pki", "ORCH_ENGINE_CA_FILE=" + key}, []string{"ORCH_ENGINE_CA_FILE"}, ""},
		"no process":           {[]string{"ORCH_ENGINE_TLS=pki", "ORCH_ENGINE_CA_FILE=" + ca, "ORCH_ENGINE_DRIVER=mock_driver"}, []string{"ORCH_ENGINE_JOB_FILE", "ORCH_ENGINE_TLS"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Load(least(append(slices.Clone(c.vars), "ORCH_ENGINE_IMAGE=engine")...))
			if names := namesIn(err); !slices.Equal(names, c.want) {
				t.Errorf("named %v, want %v: %v", names, c.want, err)
			}
			if path := got.Scheduler().Job.PKIPath; len(c.want) == 0 && path != c.path {
				t.Errorf("certificates are issued at %q, want %q", path, c.path)
			}
		})
	}
}
