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

// Brand is what the engine_ids of one deployment begin with: all that is named
// after an engine, in Nomad and in Vault, says by that whose it is, so that
// nobody removes what belongs to another deployment in the same cluster.
func Brand(deployment, namespace string) string {
	sum := sha256.Sum256([]byte(deployment + "\x00" + namespace))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:idBrand]
}

// newID returns an id that was never used: 26 characters a-z2-7, 130 bits.
func newID() string { return strings.ToLower(rand.Text()) }

// newEngineID returns an engine_id that was never used: 26 characters a-z2-7, of
// which 100 bits are random.
func (s *Scheduler) newEngineID() string { return s.brand + newID()[idBrand:] }
