package engine

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxUserIDBytes is the longest user_id (SPEC section 1).
const MaxUserIDBytes = 256

// ErrDotSegment is wrong with a user_id that has a segment which clients (WHATWG URL
// standard, "shorten a path") and proxies take out of a path, percent-encoded or not:
// the call would reach nobody, or another user.
var ErrDotSegment = errors.New(`user_id has a segment "." or ".." between slashes, which clients and proxies take out of paths`)

// CheckUserID says what is wrong with a user_id, in words for the caller, or
// returns nil: 1 to 256 bytes of UTF-8 without control characters (SPEC
// section 1). ErrDotSegment is checked last.
func CheckUserID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("user_id is empty")
	case len(id) > MaxUserIDBytes:
		return fmt.Errorf("user_id is %d bytes long; at most %d are allowed", len(id), MaxUserIDBytes)
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
