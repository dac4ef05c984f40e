package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// The ways in which job meta can name an engine's user (Settings.UserMeta).
const (
	UserHashed = "hashed"
	UserPlain  = "plain"
	UserNone   = "none"
)

// Job meta by which an engine is found in Nomad.
const (
	productMeta = "product"
	userMeta    = "user"
)

// tell writes the engine's product and user into job meta. Meta is fixed when the process
// is started, so a warm engine that was claimed has it from its next start on.
func (s Settings) tell(meta map[string]string, e Engine) {
	meta[productMeta] = metaValue(e.ProductName)
	switch s.UserMeta {
	case UserHashed:
		meta[userMeta] = hashUser(e.UserID)
	case UserPlain:
		meta[userMeta] = metaValue(e.UserID)
	}
}

// hashUser returns the SHA-256 of a user_id in hexadecimal, as `printf %s ID | sha256sum`
// prints it.
func hashUser(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:])
}

// metaValue returns a string that Nomad, which interpolates job meta and gives it to the
// process as a variable, leaves as it is: "$", "%" and control characters are
// percent-encoded.
func metaValue(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '$' || r == '%' || r < ' ' || r == 0x7f {
			fmt.Fprintf(&b, "%%%02X", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
