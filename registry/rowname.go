package registry

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// rowName returns the part of a row's key below engines/: a shard from 00 to ff, the
// product and the user, encoded so that any user_id is one path segment.
func rowName(productID, userID string) string {
	return shard(productID, userID) + "/" + productID + "/" + base64.RawURLEncoding.EncodeToString([]byte(userID))
}

// shard distributes rows over 256 prefixes, so that after a change only one of them must be
// listed again.
func shard(productID, userID string) string {
	sum := sha256.Sum256([]byte(productID + "\x00" + userID))
	return hex.EncodeToString(sum[:1])
}

// shardOf returns the shard in a row's name.
func shardOf(name string) string {
	shard, _, _ := strings.Cut(name, "/")
	return shard
}

// parseRowName is the inverse of rowName.
func parseRowName(name string) (productID, userID string, err error) {
	parts := strings.Split(name, "/")
	if len(parts) != 3 {
		return "", "", fmt.Errorf("registry: row name %q must have three parts", name)
	}
	user, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return "", "", fmt.Errorf("registry: row name %q: %w", name, err)
	}
	// A name in another shard, or with another encoding, is wrong too: a user has one row.
	if want := rowName(parts[1], string(user)); name != want {
		return "", "", fmt.Errorf("registry: row name %q should be %q", name, want)
	}
	return parts[1], string(user), nil
}
