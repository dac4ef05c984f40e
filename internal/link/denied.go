package link

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
)

// deniedPeek is how much of a response is kept to quote the store, in bytes.
const deniedPeek = 512

// Refusal is a response with which a store refuses the service's token, or a right of it.
type Refusal struct {
	Store    string
	Endpoint string // method and path, with "*" for names of single engines
	Needs    string // the missing right; "": see Said
	Said     string // by the store, at most deniedPeek bytes
}

type tryingKey struct{}

// Trying marks calls that find out whether the store refuses them, so that their refusals
// are not reported.
func Trying(ctx context.Context) context.Context {
	return context.WithValue(ctx, tryingKey{}, true)
}

// TellRefusals sets a function that is called when the store refuses the service's token.
// Call it before the first request.
func (l *Link) TellRefusals(tell func(Refusal)) { l.refused = tell }

// look reports a response that is a refusal, and returns whether it is one. The response can
// still be read whole.
func (l *Link) look(req *http.Request, resp *http.Response) bool {
	if l.refused == nil || !l.kind.denies(req, resp) || req.Context().Value(tryingKey{}) != nil {
		return false
	}
	var begin bytes.Buffer
	_, _ = io.CopyN(&begin, resp.Body, deniedPeek)
	said := begin.String()
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(&begin, resp.Body), resp.Body}
	if (resp.StatusCode == http.StatusConflict || resp.StatusCode == http.StatusInternalServerError) && !strings.Contains(said, "Permission denied") {
		return false
	}
	what := Refusal{Store: l.kind.Name, Endpoint: req.Method + " " + endpoint(req.URL.Path), Said: WithoutName(strings.TrimSpace(said))}
	if l.kind.needs != nil {
		what.Needs = l.kind.needs(req)
	}
	l.refused(what)
	return true
}

// denies reports whether a response may be a refusal. Consul responds to a transaction whose
// operations the token may not carry out as to one that found a conflict, and a server of
// Nomad refuses logs with 500.
func (k *Kind) denies(req *http.Request, resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusForbidden:
		return true
	case http.StatusUnauthorized:
		return k.Name != Consul.Name // there, it says that ACLs or coordinates are turned off
	case http.StatusConflict:
		return k.Name == Consul.Name
	case http.StatusInternalServerError:
		return k.Name == "nomad" && strings.HasPrefix(req.URL.Path, nomadFS)
	}
	return false
}

// WithoutName returns a store's text up to the name of what it refuses, which may contain a
// user_id: Consul's ends in 'lacks permission "key:write" on "orch/engines/..."'.
func WithoutName(said string) string {
	before, _, found := strings.Cut(said, "' on ")
	if found {
		return before + "'"
	}
	return said
}

// endpoint returns a path with "*" for the names of users, single engines, allocations and
// keys, so that there are few different ones.
func endpoint(path string) string {
	const rows = "/engines/" // below it, names of users
	if before, _, found := strings.Cut(path, rows); found {
		return before + rows + "*"
	}
	parts := strings.Split(path, "/")
	for i, part := range parts {
		switch {
		case strings.HasPrefix(part, "engine-") && part != "engine-env":
			parts[i] = "engine-*"
		case strings.HasPrefix(part, "orch-brain-"):
			parts[i] = "orch-brain-*"
		case len(part) >= 20:
			parts[i] = "*"
		}
	}
	return strings.Join(parts, "/")
}
