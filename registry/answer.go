package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	consul "github.com/hashicorp/consul/api"
)

// stored is a key as Consul answered it. Its value is still in base64, as it came:
// most are ones that were read before, and then it need not be decoded.
type stored struct {
	key   string
	text  []byte
	index uint64 // ModifyIndex; 0: there is no such key
}

func storedAt(key string, value []byte, index uint64) stored {
	return stored{key, base64.StdEncoding.AppendEncode(nil, value), index}
}

func (v stored) value() ([]byte, error) { return base64.StdEncoding.AppendDecode(nil, v.text) }

type answerKey struct{}

// answered has read the body of the answer to a call with the context, if the
// client's transport is one of RawAnswers.
func answered(ctx context.Context, read func(io.Reader) error) context.Context {
	return context.WithValue(ctx, answerKey{}, read)
}

// RawAnswers wraps the transport of a Consul client, so that shared reads get the
// bytes of their answers, and lists are read as they come in. The client decodes
// each value by reflection, which costs more than all else that an admit does, and
// holds a list of all rows three times over; without this, what it decoded is
// taken.
func RawAnswers(next http.RoundTripper) http.RoundTripper { return rawAnswers{next} }

type rawAnswers struct{ next http.RoundTripper }

func (t rawAnswers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	read, wanted := req.Context().Value(answerKey{}).(func(io.Reader) error)
	if err != nil || !wanted || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := read(resp.Body); err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil { // so that the connection is good for the next
		return nil, err
	}
	resp.Body = io.NopCloser(strings.NewReader("null")) // for the client to decode
	return resp, nil
}

// usualSize is about what a row and its key take in an answer.
const usualSize = 1 << 10

// readKeys reads keys in one transaction: an answer for each.
func (s *Store) readKeys(ctx context.Context, keys []string) ([]stored, error) {
	ops := make(consul.KVTxnOps, len(keys))
	for i, key := range keys {
		ops[i] = &consul.KVTxnOp{Verb: consul.KVGetOrEmpty, Key: key}
	}
	answer := bytes.NewBuffer(make([]byte, 0, (len(keys)+1)*usualSize))
	pairs, _, err := s.txn(answered(ctx, func(body io.Reader) error { _, err := answer.ReadFrom(body); return err }), ops)
	if err != nil {
		return nil, err
	}
	if answer.Len() > 0 {
		if found, ok := scanAnswer(answer.Bytes(), len(keys)); ok {
			return found, nil
		}
		var resp struct{ Results []struct{ KV *consul.KVPair } }
		if err := json.Unmarshal(answer.Bytes(), &resp); err != nil {
			return nil, unavailable(err)
		}
		for _, r := range resp.Results {
			pairs = append(pairs, r.KV)
		}
	}
	found := make([]stored, 0, len(pairs))
	for _, p := range pairs {
		found = append(found, storedAt(p.Key, p.Value, p.ModifyIndex))
	}
	return found, nil
}

// each calls do with every key below a prefix of the store, as the answer comes
// in, and returns up to which index of Consul they are complete. The value is good
// until do returns. What do was told says nothing when an error is returned.
func (s *Store) each(q *consul.QueryOptions, below string, do func(stored) error) (index uint64, err error) {
	var told error // by do
	streamed := false
	pairs, meta, err := s.client.KV().List(s.prefix+below, q.WithContext(answered(q.Context(), func(body io.Reader) error {
		streamed = true
		return eachKey(body, func(v stored) error { told = do(v); return told })
	})))
	switch {
	case told != nil:
		return 0, told
	case err != nil:
		return 0, unavailable(err)
	case streamed:
		return meta.LastIndex, nil
	}
	for _, p := range pairs {
		if err := do(storedAt(p.Key, p.Value, p.ModifyIndex)); err != nil {
			return 0, err
		}
	}
	return meta.LastIndex, nil
}

// eachKey reads the keys out of a list, one at a time.
func eachKey(list io.Reader, do func(stored) error) error {
	dec := json.NewDecoder(list)
	begin, err := dec.Token()
	if err != nil {
		return err
	}
	if begin != json.Delim('[') {
		return fmt.Errorf("registry: a list of keys begins with %v", begin)
	}
	var p struct {
		Key         string
		Value       json.RawMessage // null, or a string in base64, which needs no escapes
		ModifyIndex uint64
	}
	for dec.More() {
		p.Key, p.Value, p.ModifyIndex = "", p.Value[:0], 0
		if err := dec.Decode(&p); err != nil {
			return err
		}
		if err := do(stored{p.Key, bytes.Trim(bytes.TrimPrefix(p.Value, []byte("null")), `"`), p.ModifyIndex}); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

// scanAnswer reads the keys out of the answer to a transaction. It knows the JSON
// that Consul writes, without escapes, and is not ok with any other.
func scanAnswer(answer []byte, n int) (found []stored, ok bool) {
	found = make([]stored, 0, n)
	s := scanner{rest: answer}
	s.object(func(name []byte) {
		if string(name) != "Results" {
			s.skip()
			return
		}
		s.array(func() {
			s.object(func(name []byte) {
				if string(name) != "KV" {
					s.skip()
					return
				}
				var v stored
				s.object(func(name []byte) {
					switch string(name) {
					case "Key":
						v.key = string(s.text())
					case "Value":
						if !s.takes("null") {
							v.text = s.text()
						}
					case "ModifyIndex":
						v.index = s.number()
					default:
						s.skip()
					}
				})
				found = append(found, v)
			})
		})
	})
	return found, !s.failed && len(bytes.TrimSpace(s.rest)) == 0
}

// scanner reads JSON that it knows the form of; its first failure is its last.
type scanner struct {
	rest   []byte
	failed bool
}

// blank is what a Consul in development mode indents its answers with.
const blank = " \n\r\t"

func (s *scanner) takes(token string) bool {
	s.rest = bytes.TrimLeft(s.rest, blank)
	if s.failed || !bytes.HasPrefix(s.rest, []byte(token)) {
		return false
	}
	s.rest = s.rest[len(token):]
	return true
}

func (s *scanner) want(token string) {
	if !s.takes(token) {
		s.failed = true
	}
}

func (s *scanner) object(field func(name []byte)) {
	s.list("{", "}", func() {
		name := s.text()
		s.want(":")
		field(name)
	})
}

func (s *scanner) array(item func()) { s.list("[", "]", item) }

func (s *scanner) list(begin, end string, item func()) {
	if s.want(begin); s.takes(end) {
		return
	}
	for item(); s.takes(","); {
		item()
	}
	s.want(end)
}

// text reads a string without escapes.
func (s *scanner) text() []byte {
	s.want(`"`)
	end := bytes.IndexByte(s.rest, '"')
	if s.failed || end < 0 || bytes.IndexByte(s.rest[:end], '\\') >= 0 {
		s.failed = true
		return nil
	}
	text := s.rest[:end]
	s.rest = s.rest[end+1:]
	return text
}

// word reads a number, or what else has no beginning and end.
func (s *scanner) word() []byte {
	s.rest = bytes.TrimLeft(s.rest, blank)
	end := bytes.IndexAny(s.rest, ",]}"+blank)
	if s.failed || end <= 0 {
		s.failed = true
		return nil
	}
	word := s.rest[:end]
	s.rest = s.rest[end:]
	return word
}

func (s *scanner) number() uint64 {
	n, err := strconv.ParseUint(string(s.word()), 10, 64)
	s.failed = s.failed || err != nil
	return n
}

// skip reads any value.
func (s *scanner) skip() {
	s.rest = bytes.TrimLeft(s.rest, blank)
	switch {
	case s.failed || len(s.rest) == 0:
		s.failed = true
	case s.rest[0] == '{':
		s.object(func([]byte) { s.skip() })
	case s.rest[0] == '[':
		s.array(s.skip)
	case s.rest[0] == '"':
		s.text()
	default:
		s.word()
	}
}
