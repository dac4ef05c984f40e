package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	jsonexp "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/septemberai/orch/engine"
)

// maxBody is the maximum size of a request body, in bytes.
const maxBody = 64 << 10

// decode reads a JSON request body into v. It is strict, so that typing errors surface:
// unknown fields, duplicate keys, wrong types, nulls, invalid UTF-8 and data after the
// value are refused, and the message names the field. An empty body counts as {}, with any
// content type, because curl with an empty -d sends that of a form. An endpoint with a body
// accepts no query parameters.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	if r.ContentLength == 0 { // most admits have no body
		return nil
	}
	if res, ok := w.(*response); ok {
		w = res.ResponseWriter // net/http's own writer closes the connection when the body is too large
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return &engine.Error{Code: engine.RequestTooLarge, Message: fmt.Sprintf("the body is larger than %d KiB", maxBody>>10)}
		}
		return invalid("the body could not be read")
	}
	if len(body) == 0 { // a chunked body without a chunk
		return nil
	}
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if media, _, err := mime.ParseMediaType(ct); err != nil || media != "application/json" {
			return &engine.Error{Code: engine.UnsupportedMedia, Message: "the body must be application/json"}
		}
	}
	return decodeBytes(body, v)
}

// blanks are JSON's white space (RFC 8259, section 2); Unicode has more.
const blanks = " \t\r\n"

func decodeBytes(body []byte, v any) error {
	body = bytes.Trim(body, blanks)
	if len(body) == 0 || string(body) == "{}" {
		return nil
	}
	err := jsonexp.Unmarshal(body, v, jsonexp.RejectUnknownMembers(true))
	if err == nil {
		if body[0] != '{' {
			return invalid("the body must be a JSON object")
		}
		if at, found := firstNull(body); found {
			return invalid("field %s is null; leave it out for its default", field(at))
		}
		return nil
	}
	var semantic *jsonexp.SemanticError
	var syntactic *jsontext.SyntacticError
	switch {
	case errors.Is(err, jsonexp.ErrUnknownName) && errors.As(err, &semantic):
		return invalid("unknown field %s", field(semantic.JSONPointer))
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntactic):
		return invalid("field %s is given twice", field(syntactic.JSONPointer))
	case errors.As(err, &semantic):
		if semantic.JSONPointer == "" {
			return invalid("the body must be a JSON object")
		}
		return invalid("field %s has the wrong type or is out of range", field(semantic.JSONPointer))
	}
	return invalid("the body is not valid JSON")
}

// firstNull finds a null in a valid JSON text. No field may be null, but the decoder would
// accept a null as the field's zero value.
func firstNull(body []byte) (at jsontext.Pointer, found bool) {
	for d := jsontext.NewDecoder(bytes.NewReader(body)); ; {
		token, err := d.ReadToken()
		if err != nil {
			return "", false
		}
		if token.Kind() == 'n' {
			return d.StackPointer(), true
		}
	}
}

// field formats a JSON pointer as a field path, shortened to fit in a message.
func field(p jsontext.Pointer) string {
	name := strings.ReplaceAll(strings.TrimPrefix(string(p), "/"), "/", ".")
	if runes := []rune(name); len(runes) > 80 {
		name = string(runes[:80]) + "..."
	}
	b, _ := json.Marshal(name)
	return string(b)
}

func invalid(format string, args ...any) *engine.Error {
	return &engine.Error{Code: engine.InvalidRequest, Message: fmt.Sprintf(format, args...)}
}
