package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/septemberai/orch/engine"
)

// policyTag returns the ETag of a policy. Equal policies have equal tags.
func policyTag(p engine.Policy) string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("server: cannot encode a policy: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return `"` + hex.EncodeToString(sum[:8]) + `"`
}

// ifMatch returns a function that reports whether the request's If-Match header names a
// policy (RFC 9110, section 13.1.1), or nil if the request has no such header.
func ifMatch(r *http.Request) func(engine.Policy) bool {
	if len(r.Header.Values("If-Match")) == 0 {
		return nil
	}
	var tags []string
	for tag := range strings.SplitSeq(strings.Join(r.Header.Values("If-Match"), ","), ",") {
		tags = append(tags, strings.TrimSpace(tag))
	}
	return func(p engine.Policy) bool {
		return slices.Contains(tags, "*") || slices.Contains(tags, policyTag(p))
	}
}
