package service

import (
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/adminkeys"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/reload"
)

// adminKeys keeps the admin keys as they are in their files: the one key of
// ORCH_ADMIN_KEY_FILE, which is read again on demand, and those of ORCH_ADMIN_KEYS_FILE,
// which are also read again when the file changes.
type adminKeys struct {
	file, namedFile string // ORCH_ADMIN_KEY_FILE and ORCH_ADMIN_KEYS_FILE; empty: none
	log             hclog.Logger
	use             func(adminkeys.Set)

	mu            sync.Mutex
	single, named []adminkeys.Key
}

func newAdminKeys(cfg *config.Config, log hclog.Logger, use func(adminkeys.Set)) *adminKeys {
	a := &adminKeys{file: cfg.AdminKeyFile, namedFile: cfg.AdminKeysFile, log: log, use: use}
	if cfg.AdminKey != "" {
		a.single = []adminkeys.Key{adminkeys.New(cfg.AdminKey)}
	}
	return a
}

// watch uses the keys, and reads ORCH_ADMIN_KEYS_FILE again when it changes.
func (a *adminKeys) watch(files *reload.Watcher) error {
	a.warn("ORCH_ADMIN_KEY_FILE", a.file)
	if a.namedFile == "" {
		return a.set(a.single, nil)
	}
	err := files.Add("admin keys", "ORCH_ADMIN_KEYS_FILE", []string{a.namedFile}, func() (*x509.Certificate, error) {
		named, err := adminkeys.Read(a.namedFile)
		if err != nil {
			return nil, err
		}
		a.warn("ORCH_ADMIN_KEYS_FILE", a.namedFile)
		a.mu.Lock()
		defer a.mu.Unlock()
		return nil, a.set(a.single, named)
	})
	if err != nil {
		return fmt.Errorf("ORCH_ADMIN_KEYS_FILE: %w", err)
	}
	return nil
}

// set replaces the keys. If it returns an error, the keys of before stay valid.
func (a *adminKeys) set(single, named []adminkeys.Key) error {
	keys, err := adminkeys.NewSet(slices.Concat(single, named)...)
	if err == nil {
		a.single, a.named = single, named
		a.use(keys)
	}
	return err
}

// reload reads ORCH_ADMIN_KEY_FILE again, if there is one. If its content is invalid, the
// key stays as it is.
func (a *adminKeys) reload() {
	if a.file == "" {
		a.log.Info("SIGHUP: ORCH_ADMIN_KEY_FILE is not set, so the admin key was not read again")
		return
	}
	single, err := config.ReadAdminKey(a.file)
	if err == nil {
		a.mu.Lock()
		err = a.set([]adminkeys.Key{adminkeys.New(single)}, a.named)
		a.mu.Unlock()
	}
	if err != nil {
		a.log.Error("SIGHUP: ORCH_ADMIN_KEY_FILE cannot be used; the admin key stays as it is", "error", err)
		return
	}
	a.warn("ORCH_ADMIN_KEY_FILE", a.file)
	a.log.Info("the admin key was read again")
}

// warn logs that every user of the machine can read a file with admin keys.
func (a *adminKeys) warn(variable, file string) {
	if file == "" {
		return
	}
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o004 != 0 {
		a.log.Warn("every user of this machine can read the admin keys: take that right away from their file (chmod o-r), unless its directory is closed to others", "variable", variable, "mode", info.Mode().Perm().String())
	}
}
