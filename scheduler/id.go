package scheduler

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"strings"
)

// idBrand is how many characters of an engine_id tell whose it is.
const idBrand = 6

// idLength is how many characters an engine_id has.
const idLength = 26

// Brand is what engine_ids began with before deployments had ids: two deployments
// with one prefix and namespace had the same.
func Brand(deployment, namespace string) string {
	sum := sha256.Sum256([]byte(deployment + "\x00" + namespace))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:idBrand]
}

// newID returns an id that was never used: 26 characters a-z2-7, 130 bits.
func newID() string { return strings.ToLower(rand.Text()) }

// brand is what the engine_ids of a deployment begin with: all that is named after
// an engine, in Nomad and in Vault, says by that whose it is.
func brand(deploymentID string) string { return deploymentID[:min(idBrand, len(deploymentID))] }

// newEngineID returns an engine_id that was never used: 26 characters a-z2-7, of
// which 100 bits are random.
func (s *Scheduler) newEngineID() string { return brand(s.guard.id()) + newID()[idBrand:] }
