package server

import (
	"net/http"
	"net/url"
	"strings"
)

// userHeader repeats the user_id of a call, percent-encoded as in the path. Proxies that
// decode, clean or merge paths can change one user_id into another, but leave this header
// alone. It is optional, except for a user_id that such a proxy would change without
// notice.
const userHeader = "X-User-Id"

// sameUser compares the user_id of a path or body with the header.
func sameUser(r *http.Request, userID string) error {
	named := r.Header.Values(userHeader)
	if len(named) == 0 {
		if merges(userID) {
			return invalid("user_id has an empty segment between slashes, which proxies may remove: send the user_id percent-encoded in the %s header, too", userHeader)
		}
		return nil
	}
	if id, err := url.PathUnescape(named[0]); err != nil || len(named) > 1 || id != userID {
		return invalid("the %s header names another user than the path or the body: a proxy has changed the path, or the header is not percent-encoded", userHeader)
	}
	return nil
}

// merges reports whether a user_id has an empty segment. Proxies that merge slashes change
// "/a", "a/" and "a//b" into "a" and "a/b".
func merges(userID string) bool {
	return strings.HasPrefix(userID, "/") || strings.HasSuffix(userID, "/") || strings.Contains(userID, "//")
}

// noUser wraps a handler of a path without a user. It refuses a call whose header names
// one, because a proxy has changed its path.
func noUser(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request, id string) error {
		if len(r.Header.Values(userHeader)) > 0 {
			return invalid("the %s header names a user, but this path has none: a proxy has changed the path, or leave out the header", userHeader)
		}
		return h(w, r, id)
	}
}
