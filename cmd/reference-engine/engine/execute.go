package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

const (
	// maxBody limits the size of a request body, in bytes, and so the memory of a request.
	maxBody = 256 << 10
	// maxInput limits the size of one input, in bytes. JSON may need six bytes for one
	// (\u0041), so the longest input does not fit into maxBody in every encoding.
	maxInput = 64 << 10
)

// decodeExecute reads the body of POST /execute: exactly one object with exactly the member
// "input", a non-empty string. encoding/json would also accept {"INPUT": ...}, a duplicate
// member, and null; a client that sends those has a bug that should be reported.
func decodeExecute(body []byte) (input string, err error) {
	v, err := decodeMember(body, "input")
	if err != nil {
		return "", err
	}
	input, ok := v.(string)
	switch {
	case !ok:
		return "", errors.New(`"input" must be a string`)
	case input == "":
		return "", errors.New(`"input" is empty`)
	case len(input) > maxInput:
		return "", fmt.Errorf(`"input" has more than %d bytes`, maxInput)
	}
	return input, nil
}

// decodeWork reads the body of POST /work.
func decodeWork(body []byte) (seconds int64, err error) {
	v, err := decodeMember(body, "seconds")
	if err != nil {
		return 0, err
	}
	n, _ := v.(json.Number)
	seconds, err = n.Int64()
	if err != nil || seconds < 0 || seconds > 3600 {
		return 0, errors.New(`"seconds" must be a whole number from 0 to 3600`)
	}
	return seconds, nil
}

// decodeMember returns the only member of the only object in body.
func decodeMember(body []byte, name string) (any, error) {
	if !utf8.Valid(body) {
		return nil, errors.New("the body is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	bad := errors.New("the body is not a JSON object")
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, bad
	}
	var value any
	found := false
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, bad
		}
		if key != name {
			return nil, fmt.Errorf("unknown field %.64q", key)
		}
		if found {
			return nil, fmt.Errorf("%q is given twice", name)
		}
		found = true
		if value, err = dec.Token(); err != nil {
			return nil, bad
		}
		if _, nested := value.(json.Delim); nested {
			return nil, fmt.Errorf("%q must not be an object or a list", name)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, bad
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("unexpected data after the JSON object")
	}
	if !found {
		return nil, fmt.Errorf("%q is missing", name)
	}
	return value, nil
}
