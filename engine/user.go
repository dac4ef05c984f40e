package engine

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxUserIDBytes is the maximum length of a user_id, in bytes (docs/api.md).
const MaxUserIDBytes = 256

// ErrDotSegment means that a segment of the user_id is removed from paths by clients (WHATWG URL
// standard, "shorten a path") and proxies, whether percent-encoded or not. A call would
// reach no user, or another one.
var ErrDotSegment = errors.New(`user_id has a segment "." or ".." between slashes, which clients and proxies remove from paths`)

// CheckUserID returns nil if a user_id is valid, or an error with a message for the caller.
// A user_id has 1 to 256 bytes of UTF-8 without control characters (docs/api.md).
// ErrDotSegment is checked last.
func CheckUserID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("user_id is empty")
	case len(id) > MaxUserIDBytes:
		return fmt.Errorf("user_id is %d bytes long; the maximum is %d", len(id), MaxUserIDBytes)
	case !utf8.ValidString(id):
		return fmt.Errorf("user_id is not valid UTF-8")
	case strings.ContainsFunc(id, unicode.IsControl):
		return fmt.Errorf("user_id contains a control character")
	}
	for segment := range strings.SplitSeq(id, "/") {
		if segment == "." || segment == ".." {
			return ErrDotSegment
		}
	}
	return nil
}
