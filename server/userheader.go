package server

import (
	"net/http"
	"net/url"
	"strings"
)

// userHeader names the user of a call once more, percent-encoded as in a path. Proxies
// that decode, clean or merge paths can turn one user_id into another; no proxy touches
// this header. It is not needed, but for ids that such a proxy would change silently.
const userHeader = "X-User-Id"

// sameUser holds a user_id that came in by a path or a body against the header.
func sameUser(r *http.Request, userID string) error {
	named := r.Header.Values(userHeader)
	if len(named) == 0 {
		if merges(userID) {
			return invalid("user_id has an empty segment between slashes, which proxies take out of paths: send it percent-encoded in the %s header, too", userHeader)
		}
		return nil
	}
	if id, err := url.PathUnescape(named[0]); err != nil || len(named) > 1 || id != userID {
		return invalid("the %s header names another user than the call: a proxy on the way has changed the path, or the header is not percent-encoded", userHeader)
	}
	return nil
}

// merges says whether a user_id has an empty segment: "/a", "a/" and "a//b" become "a"
// and "a/b" in proxies that merge slashes.
func merges(userID string) bool {
	return strings.HasPrefix(userID, "/") || strings.HasSuffix(userID, "/") || strings.Contains(userID, "//")
}

// noUser refuses a call that names a user where its path has none: a proxy made another
// path of it.
func noUser(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request, id string) error {
		if len(r.Header.Values(userHeader)) > 0 {
			return invalid("the %s header names a user, and this call is about none: a proxy on the way has changed the path, or the header is one too many", userHeader)
		}
		return h(w, r, id)
	}
}
