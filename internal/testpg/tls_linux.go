package testpg

import (
	"errors"
	"os"
	"path/filepath"
)

// UseCertificate makes the server offer TLS with the certificate and key in these files, to
// connections from now on.
func (s *Server) UseCertificate(cert, key string) error {
	for name, from := range map[string]string{"server.crt": cert, "server.key": key} {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		to := filepath.Join(s.data(), name)
		if err := os.WriteFile(to, text, 0o600); err != nil {
			return err
		}
		if s.as != nil {
			if err := os.Chown(to, int(s.as.Uid), int(s.as.Gid)); err != nil {
				return err
			}
		}
	}
	return errors.Join(s.Exec("ALTER SYSTEM SET ssl = on"), s.Exec("SELECT pg_reload_conf()"))
}
