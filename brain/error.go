package brain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"syscall"
)

// Kind says why an operation on snapshots failed. Its values are part of the worker's
// output, and do not change.
type Kind string

const (
	// Away means: the store cannot be reached, does not respond in time, or is overloaded.
	Away Kind = "away"
	// Refused means: the store responds and does not allow it: wrong or expired rights.
	Refused Kind = "refused"
	// OverQuota means: the store has no room, or its quota is used up.
	OverQuota Kind = "over_quota"
	// NotFound means: there is no such object, upload or manifest.
	NotFound Kind = "not_found"
	// Corrupt means: the content is not what was stored, or would leave its target directory.
	Corrupt Kind = "corrupt"
	// Damaged means: the content is what was stored, but a database in it is damaged.
	Damaged Kind = "damaged"
	// NoRoom means: the disk of this machine is full, or a quota on it is used up.
	NoRoom Kind = "no_room"
	// Unreadable means: an entry of the brain cannot be read, or not be put into an archive.
	Unreadable Kind = "unreadable"
	// NotEmpty means: the target of a restore contains something that the restore did not make.
	NotEmpty Kind = "not_empty"
	// TooLarge means: the archive does not fit into the parts of its upload.
	TooLarge Kind = "too_large"
	// BadOrder means: the worker does not understand its order.
	BadOrder Kind = "bad_order"
	// Busy means: another worker, or an engine, holds the work directory or the volume.
	Busy Kind = "busy"
	// Interrupted means: the work was stopped from outside, nobody asked for it in time, or
	// whoever asked did not wait for its end.
	Interrupted Kind = "interrupted"
	// Internal means: everything else.
	Internal Kind = "internal"
)

// Retry reports whether the same may succeed later without a change by anybody.
func (k Kind) Retry() bool { return k == Away || k == Busy || k == Interrupted || k == Internal }

// Error is the error of all packages below brain. Message contains no secrets and no URLs
// with signatures; Err, which may contain them, is for errors.Is alone, and is not printed.
type Error struct {
	Kind    Kind
	Message string
	Err     error
}

func (e *Error) Error() string { return string(e.Kind) + ": " + e.Message }

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error of a kind. It keeps what %w names for errors.Is.
func Errorf(kind Kind, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), Err: errors.Unwrap(err)}
}

// KindOf returns the kind of an error: its own, or what the operating system and the
// context say. The kind of nil is empty.
func KindOf(err error) Kind {
	var own *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &own):
		return own.Kind
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return NoRoom
	case errors.Is(err, context.Canceled):
		return Interrupted
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	}
	return Internal
}

// Local gives an error of the file system its kind: NoRoom if the disk is full, otherwise
// the given one. Errors that have a kind keep it.
func Local(err error, otherwise Kind, what string) error {
	var own *Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	kind := KindOf(err)
	if kind != NoRoom && kind != Interrupted {
		kind = otherwise
	}
	return &Error{Kind: kind, Message: what + ": " + err.Error(), Err: err}
}

// Response gives the response of an S3 store its kind, by its status and the code in its
// body. It is only called for responses that are not a success.
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
func Response(status int, code, what string) error {
	kind := Internal
	switch {
	case code == "QuotaExceeded", code == "InsufficientStorage", code == "XMinioAdminBucketQuotaExceeded",
		code == "XMinioStorageFull", status == http.StatusInsufficientStorage:
		kind = OverQuota
	case code == "BadDigest", status == http.StatusRequestTimeout, status == http.StatusTooManyRequests,
		code == "RequestTimeout", status >= 500:
		kind = Away
	case status == http.StatusNotFound:
		kind = NotFound
	case status == http.StatusPreconditionFailed:
		kind = Corrupt
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusBadRequest:
		kind = Refused
	}
	return &Error{Kind: kind, Message: fmt.Sprintf("%s: the store responds with %d %s", what, status, code)}
}

// Unanswered gives a request without a response its kind. The message has no URL, because
// the signature in it is a secret.
func Unanswered(err error, what string) error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var inURL *url.Error
	if errors.As(err, &inURL) {
		err = inURL.Err
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Kind: Interrupted, Message: what, Err: err}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{Kind: Away, Message: what + ": the connection was lost"}
	}
	return &Error{Kind: Away, Message: what + ": " + err.Error(), Err: err}
}
