package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	consul "github.com/hashicorp/consul/api"
)

// stored is a key in a response of Consul. Its value is still encoded in base64, because
// most values have been read before and need not be decoded again.
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

// answered makes read process the body of the response to a call with this context, if the
// client's transport is one of RawAnswers.
func answered(ctx context.Context, read func(io.Reader) error) context.Context {
	return context.WithValue(ctx, answerKey{}, read)
}

// RawAnswers wraps the transport of a Consul client. With it, shared reads get the values
// of a response undecoded, and lists are processed while they arrive. Without it, Consul's
// client decodes each value, which takes a sixth more CPU time for an admit (202 instead of
// 175 microseconds, medians of 23 interleaved runs of the server's BenchmarkAdmit), and
// needs the memory of a list of all rows three times.
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
	if _, err := io.Copy(io.Discard, resp.Body); err != nil { // so that the connection can be used again
		return nil, err
	}
	resp.Body = io.NopCloser(strings.NewReader("null")) // for Consul's client to decode
	return resp, nil
}

// readKey is a key in a response.
type readKey struct {
	Key         string
	Value       json.RawMessage // null, or a base64 string, which needs no escapes
	ModifyIndex uint64
}

func (k readKey) stored() stored {
	return stored{k.Key, bytes.Trim(bytes.TrimPrefix(k.Value, []byte("null")), `"`), k.ModifyIndex}
}

// readKeys reads keys in one transaction, with one result for each.
func (s *Store) readKeys(ctx context.Context, keys []string) ([]stored, error) {
	ops := make(consul.KVTxnOps, len(keys))
	for i, key := range keys {
		ops[i] = &consul.KVTxnOp{Verb: consul.KVGetOrEmpty, Key: key}
	}
	var answer struct{ Results []struct{ KV readKey } }
	pairs, _, err := s.txn(answered(ctx, func(body io.Reader) error { return json.NewDecoder(body).Decode(&answer) }), ops)
	if err != nil {
		return nil, err
	}
	found := make([]stored, 0, len(keys))
	for _, r := range answer.Results {
		found = append(found, r.KV.stored())
	}
	for _, p := range pairs { // without RawAnswers
		found = append(found, storedAt(p.Key, p.Value, p.ModifyIndex))
	}
	if len(found) != len(keys) { // Consul leaves out the results that the token may not read
		return nil, denied(fmt.Sprintf("%d results for %d reads: key:read is missing", len(found), len(keys)))
	}
	return found, nil
}

// each calls do with every key below a prefix of the store, while the response arrives. It
// returns the Consul index up to which the keys are complete. The value is only valid until
// do returns. After an error, the calls of do have no meaning.
func (s *Store) each(q *consul.QueryOptions, below string, do func(stored) error) (index uint64, err error) {
	var told error // from do
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
	case streamed: // a response that hides everything has no body to stream
		return meta.LastIndex, s.unfiltered(q.Context(), below, meta, 1)
	}
	for _, p := range pairs {
		if err := do(storedAt(p.Key, p.Value, p.ModifyIndex)); err != nil {
			return 0, err
		}
	}
	return meta.LastIndex, s.unfiltered(q.Context(), below, meta, len(pairs))
}

// eachKey reads the keys of a list one by one.
func eachKey(list io.Reader, do func(stored) error) error {
	dec := json.NewDecoder(list)
	begin, err := dec.Token()
	if err != nil {
		return err
	}
	if begin != json.Delim('[') {
		return fmt.Errorf("registry: a list of keys must not begin with %v", begin)
	}
	var k readKey
	for dec.More() {
		k = readKey{Value: k.Value[:0]}
		if err := dec.Decode(&k); err != nil {
			return err
		}
		if err := do(k.stored()); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}
