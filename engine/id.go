package engine

import (
	"crypto/rand"
	"strings"
)

const (
	// idBrand is how many characters of an engine_id tell whose it is, and idLength how
	// many it has.
	idBrand  = 6
	idLength = 26
)

// brand is what the engine_ids of a deployment begin with: all that is named after
// an engine, in Nomad and in Vault, says by that whose it is.
func brand(deploymentID string) string { return deploymentID[:min(idBrand, len(deploymentID))] }

// NewID returns an engine_id of a deployment that was never used: 26 characters a-z2-7,
// of which 100 bits are random.
func NewID(deploymentID string) string {
	return brand(deploymentID) + strings.ToLower(rand.Text())[idBrand:]
}

// MadeBy says whether an engine_id was made by a deployment, by its beginning.
func MadeBy(id, deploymentID string) bool {
	return len(id) == idLength && deploymentID != "" && strings.HasPrefix(id, brand(deploymentID))
}
