package devstack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// vaultNode contains the values in the configuration of Vault.
type vaultNode struct {
	Dir, Bind     string
	HTTP, Cluster int
	TLS           tlsFiles
}

// vaultTemplate is the configuration of Vault. Its storage is on disk, so that a killed
// Vault keeps its secrets.
const vaultTemplate = `
storage "raft" {
  path = %[1]q
  performance_multiplier = "1" # short Raft timeouts, because there is only one server
}

listener "tcp" {
  address         = "%[2]s:%[3]d"
  cluster_address = "%[2]s:%[4]d"
  %[5]s
}

api_addr      = "%[6]s://%[2]s:%[3]d"
cluster_addr  = "%[6]s://%[2]s:%[4]d"
disable_mlock = true
ui            = true
log_level     = "warn"
`

// render writes Vault's configuration file and creates its data directory.
func (n vaultNode) render(path string) error {
	data := filepath.Join(n.Dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	secure, scheme := "tls_disable     = true", "http"
	if n.TLS.CA != "" {
		secure, scheme = fmt.Sprintf("tls_cert_file   = %q\n  tls_key_file    = %q", n.TLS.Cert, n.TLS.Key), "https"
	}
	text := strings.TrimSpace(fmt.Sprintf(vaultTemplate, data, n.Bind, n.HTTP, n.Cluster, secure, scheme)) + "\n"
	return os.WriteFile(path, []byte(text), 0o600)
}
