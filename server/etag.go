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

// policyTag is the ETag of a policy: equal ones have the same, whoever wrote them.
func policyTag(p engine.Policy) string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("server: policies always marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return `"` + hex.EncodeToString(sum[:8]) + `"`
}

// ifMatch says whether a policy is one that the request's If-Match names (RFC 9110,
// section 13.1.1); nil: it names none.
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
