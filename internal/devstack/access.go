package devstack

import "path/filepath"

// Access is what one caller needs to reach a stack's agents: addresses, tokens and
// certificates.
type Access struct {
	NomadAddr, NomadToken   string
	ConsulAddr, ConsulToken string
	VaultAddr, VaultToken   string
	// CACert, ClientCert and ClientKey are files in PEM format. They are empty where
	// the agents serve plain HTTP.
	CACert, ClientCert, ClientKey string
}

// Open reports whether the agents serve callers without a token.
func (a Access) Open() bool { return a.CACert == "" }

// Environ returns the access as environment variables (NAME=value) that the clients and
// command lines of the agents read, without those that would be empty.
func (a Access) Environ() []string {
	var env []string
	for _, v := range [][2]string{
		{"NOMAD_ADDR", a.NomadAddr}, {"NOMAD_TOKEN", a.NomadToken},
		{"NOMAD_CACERT", a.CACert}, {"NOMAD_CLIENT_CERT", a.ClientCert}, {"NOMAD_CLIENT_KEY", a.ClientKey},
		{"CONSUL_HTTP_ADDR", a.ConsulAddr}, {"CONSUL_HTTP_TOKEN", a.ConsulToken},
		{"CONSUL_CACERT", a.CACert}, {"CONSUL_CLIENT_CERT", a.ClientCert}, {"CONSUL_CLIENT_KEY", a.ClientKey},
		{"VAULT_ADDR", a.VaultAddr}, {"VAULT_TOKEN", a.VaultToken}, {"VAULT_CACERT", a.CACert},
	} {
		if v[1] != "" {
			env = append(env, v[0]+"="+v[1])
		}
	}
	return env
}

// tlsFiles are the files that an agent or a caller needs for TLS; the zero value
// is none.
type tlsFiles struct{ CA, Cert, Key string }

// tlsDir is where a stack keeps its certificates.
func tlsDir(dir string) string { return filepath.Join(dir, "tls") }
