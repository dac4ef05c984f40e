package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	consul "github.com/hashicorp/consul/api"
	"pgregory.net/rapid"
)

// What Consul writes is read as its own client reads it, and half of an answer is
// no answer.
func TestScanAnswer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := consul.TxnResponse{Results: consul.TxnResults{}}
		for range rapid.IntRange(0, 5).Draw(t, "results") {
			p := &consul.KVPair{
				Key:         rapid.StringMatching(`[a-zA-Z0-9_./-]{1,40}`).Draw(t, "key"),
				Flags:       rapid.Uint64().Draw(t, "flags"),
				Session:     rapid.StringMatching(`[a-f0-9-]{0,36}`).Draw(t, "session"),
				ModifyIndex: rapid.Uint64().Draw(t, "index"),
			}
			if p.ModifyIndex > 0 {
				p.Value = rapid.SliceOf(rapid.Byte()).Draw(t, "value")
			}
			want.Results = append(want.Results, &consul.TxnResult{KV: p})
		}
		answer, err := json.Marshal(want)
		if rapid.Bool().Draw(t, "development mode") {
			answer, err = json.MarshalIndent(want, "", "    ")
		}
		if err != nil {
			t.Fatal(err)
		}
		got, ok := scanAnswer(append(answer, '\n'), 0)
		if !ok || len(got) != len(want.Results) {
			t.Fatalf("%d results of %s, ok is %v", len(got), answer, ok)
		}
		for i, v := range got {
			p := want.Results[i].KV
			value, err := v.value()
			if err != nil || v.key != p.Key || v.index != p.ModifyIndex || string(value) != string(p.Value) {
				t.Fatalf("result %d is %+v, %v", i, v, err)
			}
		}
		cut := rapid.IntRange(0, len(answer)-1).Draw(t, "cut")
		if _, ok := scanAnswer(answer[:cut], 0); ok {
			t.Fatalf("ok with %s", answer[:cut])
		}
	})
	for _, other := range []string{
		``, `null`, `[]`, `{"Results":null}`, `{"Results":[null]}`, `{"Results":[{"KV":null}]}`, `{"Results":[{"KV":{"Key":"a\u003cb"}}]}`,
		`{"Results":[{"KV":{"ModifyIndex":-1}}]}`, `{"Results":[{"KV":{"ModifyIndex":1.5}}]}`, `{"Results":[{"KV":{"Value":5}}]}`, `{"Results":[]}{}`,
	} {
		if found, ok := scanAnswer([]byte(other), 0); ok {
			t.Errorf("%s: ok with %v", other, found)
		}
	}
}

// An answer in JSON of another form is read all the same; one that is no JSON, or
// too short, is none.
func TestOtherAnswers(t *testing.T) {
	answer := ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(answer)) }))
	defer srv.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	cfg := &consul.Config{Address: srv.URL, Transport: transport}
	c, err := consul.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.HttpClient.Transport = RawAnswers(cfg.HttpClient.Transport)
	s := New(c, "t/")
	answer = `{"Results":[{"KV":{"Key":"t\/a","Value":"eyJlbmdpbmVfaWQiOiJhIn0=","ModifyIndex":7}}]}`
	found, err := s.shared.read(t.Context(), "p", "t/a")
	if e, derr := s.rows.of(found["t/a"]); err != nil || derr != nil || e.EngineID != "a" || e.Index != 7 {
		t.Errorf("got %+v, %v, %v", found, err, derr)
	}
	for _, answer = range []string{`{"Results":[]}`, `{"Results":[`, `<html>`, ``} {
		_, err := s.shared.read(t.Context(), "p", "t/a")
		wantErr(t, err, ErrUnavailable)
	}
}

// A value that differs is decoded anew, also at the index of another: a Consul that
// was restored counts again from where it was.
func TestDecodedIsOfWhatWasRead(t *testing.T) {
	d := decoded[Engine]{decode: decodeEngine}
	of := func(value string, index uint64) *Engine {
		t.Helper()
		e, err := d.of(stored{"k", base64.StdEncoding.AppendEncode(nil, []byte(value)), index})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	first := of(`{"engine_id": "a", "key_version": 1}`, 7)
	if of(`{"engine_id": "a", "key_version": 1}`, 7) != first {
		t.Error("the same value is decoded twice")
	}
	if e := of(`{"engine_id": "a", "key_version": 2}`, 7); e.KeyVersion != 2 {
		t.Errorf("another value at the same index: %+v", e)
	}
	if e := of(`{"engine_id": "a", "key_version": 2}`, 9); e.Index != 9 {
		t.Errorf("the same value at another index: %+v", e)
	}
	if _, err := d.of(stored{"k", []byte("%"), 10}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a value that is not base64: %v", err)
	}
	if _, err := d.of(stored{"k", base64.StdEncoding.AppendEncode(nil, []byte("{")), 11}); err == nil {
		t.Error("a damaged row is decoded")
	}
}

func TestDecodedIsBounded(t *testing.T) {
	d := decoded[Engine]{decode: decodeEngine, rows: make(map[string]decodedRow[Engine], maxDecoded)}
	for n := range maxDecoded + 10 {
		if _, err := d.of(stored{string(rune('a' + n)), []byte("e30="), uint64(n)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.rows) != maxDecoded {
		t.Errorf("%d rows are kept, want %d", len(d.rows), maxDecoded)
	}
}
