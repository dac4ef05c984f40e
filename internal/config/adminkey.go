package config

import (
	"fmt"
	"os"
	"strings"

	"github.com/septemberai/orch/internal/adminkeys"
)

// ReadAdminKey reads the admin key from a file, without blanks and line ends around it.
func ReadAdminKey(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	key := strings.TrimSpace(string(b))
	if len([]rune(key)) < adminkeys.MinLength {
		return "", fmt.Errorf("must contain at least %d characters", adminkeys.MinLength)
	}
	return key, nil
}

// checkAdminKeys reads the admin keys, and returns the mistakes in their settings.
func (c *Config) checkAdminKeys(bad func(ok bool, name, format string, args ...any)) {
	bad(c.AdminKey == "" || c.AdminKeyFile == "", "ORCH_ADMIN_KEY_FILE", "and ORCH_ADMIN_KEY are both set; set only one of them")
	if c.AdminKey == "" && c.AdminKeyFile != "" {
		key, err := ReadAdminKey(c.AdminKeyFile)
		bad(err == nil, "ORCH_ADMIN_KEY_FILE", "%v", err)
		c.AdminKey = key
	} else if c.AdminKey != "" || c.AdminKeysFile == "" {
		bad(len([]rune(c.AdminKey)) >= adminkeys.MinLength, "ORCH_ADMIN_KEY", "must be set and have at least %d characters, unless ORCH_ADMIN_KEYS_FILE is set", adminkeys.MinLength)
	}
	if c.AdminKeysFile != "" {
		keys, err := adminkeys.Read(c.AdminKeysFile)
		if err == nil && c.AdminKey != "" {
			_, err = adminkeys.NewSet(append(keys, adminkeys.New(c.AdminKey))...)
		}
		bad(err == nil, "ORCH_ADMIN_KEYS_FILE", "%v", err)
	}
}
