package engine

import (
	"crypto/rand"
	"strings"
)

const (
	// prefixLength is how many characters of an engine_id tell whose it is, and idLength how
	// many it has.
	prefixLength = 6
	idLength     = 26
)

// idPrefix is what the engine_ids of a deployment begin with: all that is named after
// an engine, in Nomad and in Vault, says by that whose it is.
func idPrefix(deploymentID string) string { return deploymentID[:min(prefixLength, len(deploymentID))] }

// NewID returns an engine_id of a deployment that was never used: 26 characters a-z2-7,
// of which 100 bits are random.
func NewID(deploymentID string) string {
	return idPrefix(deploymentID) + strings.ToLower(rand.Text())[prefixLength:]
}

// MadeBy says whether an engine_id was made by a deployment, by its beginning.
func MadeBy(id, deploymentID string) bool {
	return len(id) == idLength && deploymentID != "" && strings.HasPrefix(id, idPrefix(deploymentID))
}
