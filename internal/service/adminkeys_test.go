package service

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// TestAdminKeyFileOfEverybody: a file with the admin key that everybody can read is warned
// of, at the start and when it is read again.
func TestAdminKeyFileOfEverybody(t *testing.T) {
	for mode, warns := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true, 0o604: true} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		(&adminKeys{log: hclog.New(&hclog.LoggerOptions{Output: &log})}).warn("ORCH_ADMIN_KEY_FILE", file)
		if got := strings.Contains(log.String(), "[WARN]"); got != warns {
			t.Errorf("mode %s: %q", mode, log.String())
		}
	}
}
