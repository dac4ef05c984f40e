package engine

import (
	"crypto/rand"
	"strings"
)

const (
	// prefixLength is the length of the part of an engine_id that names its deployment, and
	// idLength that of the whole id, in characters.
	prefixLength = 6
	idLength     = 26
)

// idPrefix returns the prefix of a deployment's engine_ids. Everything that is named after
// an engine, in Nomad and in Vault, shows by it which deployment it belongs to.
func idPrefix(deploymentID string) string { return deploymentID[:min(prefixLength, len(deploymentID))] }

// NewID returns a new, unique engine_id of a deployment: 26 characters a-z2-7, of which 100
// bits are random.
func NewID(deploymentID string) string {
	return idPrefix(deploymentID) + strings.ToLower(rand.Text())[prefixLength:]
}

// IsID reports whether a text has the form of an engine_id.
func IsID(id string) bool {
	notOurs := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '2' || c > '7') }
	return len(id) == idLength && !strings.ContainsFunc(id, notOurs)
}

// MadeBy reports, by its prefix, whether an engine_id belongs to a deployment.
func MadeBy(id, deploymentID string) bool {
	return len(id) == idLength && deploymentID != "" && strings.HasPrefix(id, idPrefix(deploymentID))
}
