package config

import (
	"fmt"
	"os"
	"strings"
)

// minAdminKey is the minimum length of the admin key, in characters.
const minAdminKey = 16

// ReadAdminKey reads the admin key from a file, without blanks and line ends around it.
func ReadAdminKey(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	key := strings.TrimSpace(string(b))
	if len([]rune(key)) < minAdminKey {
		return "", fmt.Errorf("must contain at least %d characters", minAdminKey)
	}
	return key, nil
}
