package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"pgregory.net/rapid"

	"github.com/septemberai/orch/engine"
)

// JSON in another form is read as well; a response that is not JSON, or too short, is an
// error.
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
	answer = `{"Results":[{"KV":{"Key":"t\/engines\/a","Value":"eyJlbmdpbmVfaWQiOiJhIn0=","ModifyIndex":7}}]}`
	found, err := s.shared.read(t.Context(), "p", "t/engines/a")
	if value, derr := found["t/engines/a"].value(); err != nil || derr != nil || string(value) != `{"engine_id":"a"}` || found["t/engines/a"].index != 7 {
		t.Errorf("got %+v, %v, %v", found, err, derr)
	}
	for _, answer = range []string{`{"Results":[]}`, `{"Results":[`, `{"Results":[{"KV":null}]`, `{"Results":[{"KV":{"Key":5}}]}`, `<html>`, ``} {
		_, err := s.shared.read(t.Context(), "p", "t/a")
		wantErr(t, err, ErrUnavailable)
	}
}

// A list is read as the client reads it; half a list is an error.
func TestEachKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want consul.KVPairs
		for range rapid.IntRange(1, 5).Draw(t, "keys") {
			want = append(want, &consul.KVPair{
				Key: rapid.String().Draw(t, "key"), Value: rapid.SliceOf(rapid.Byte()).Draw(t, "value"), ModifyIndex: rapid.Uint64().Draw(t, "index"),
			})
		}
		list, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got []stored
		all := func(v stored) error {
			v.text = slices.Clone(v.text) // valid only during this call
			got = append(got, v)
			return nil
		}
		if err := eachKey(bytes.NewReader(list), all); err != nil || len(got) != len(want) {
			t.Fatalf("%d keys of %s, %v", len(got), list, err)
		}
		for i, v := range got {
			p := want[i]
			value, err := v.value()
			if err != nil || v.key != p.Key || v.index != p.ModifyIndex || string(value) != string(p.Value) {
				t.Fatalf("key %d is %+v, %v", i, v, err)
			}
		}
		cut := rapid.IntRange(0, len(list)-1).Draw(t, "cut")
		if err := eachKey(bytes.NewReader(list[:cut]), all); err == nil {
			t.Fatalf("no error with %s", list[:cut])
		}
	})
	refused := errors.New("refused")
	if err := eachKey(strings.NewReader(`[{"Key":"a"}]`), func(stored) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("got %v, want the error of do", err)
	}
	for _, other := range []string{``, `null`, `{}`, `5`, `[5]`, `[{"Key":5}]`} {
		if err := eachKey(strings.NewReader(other), func(stored) error { return nil }); err == nil {
			t.Errorf("%s is a list", other)
		}
	}
}

// A row that the mirror already has is not decoded again. A different value is, even at the
// index of another: the indexes of a restored Consul start again at an earlier one.
func TestRowIsOfWhatWasRead(t *testing.T) {
	s := New(nil, "t/")
	m := s.NewMirror(hclog.NewNullLogger())
	at := func(version int, index uint64) stored {
		return storedAt(s.engineKey("p", "u"), encode(&engine.Row{EngineID: "a", ProductID: "p", UserID: "u", State: engine.Running, KeyVersion: version}), index)
	}
	read := func(version int, index uint64) *engine.Row {
		t.Helper()
		e, err := s.row(at(version, index))
		if err != nil || e.KeyVersion != version || e.Index != index || keptOf(e.Stored).state != engine.Running {
			t.Fatalf("version %d at %d is read as %+v, %v", version, index, e, err)
		}
		return e
	}
	if one, other := read(1, 7), read(1, 7); one == other {
		t.Error("a row that the mirror does not have is shared")
	}
	m.wrote(at(1, 7))
	if e := read(1, 7); e != m.ByID("a") {
		t.Error("the mirror's row is decoded again")
	}
	read(2, 7)
	read(1, 9)
	if e := m.ByID("a"); e.KeyVersion != 1 || e.Index != 7 {
		t.Errorf("the mirror has %+v of what was only read", e)
	}
	if _, err := s.row(stored{s.engineKey("p", "u"), []byte("%"), 10}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a value that is not base64: %v", err)
	}
	var u *Unreadable
	if _, err := s.row(storedAt(s.engineKey("p", "u"), []byte("{"), 11)); !errors.As(err, &u) || u.Newer || u.ProductID != "p" || u.UserID != "u" || u.Index != 11 {
		t.Errorf("a damaged row: %v", err)
	}
}

func TestDecodedIsOfWhatWasRead(t *testing.T) {
	var d decoded
	of := func(slug string, index uint64) *engine.Product {
		t.Helper()
		p, err := d.of(storedAt("k", encode(&engine.Product{ProductID: "k", Slug: slug, PlatformKeyHash: "h"}), index))
		if err != nil || p.Slug != slug || p.Index != index {
			t.Fatalf("%q at %d is read as %+v, %v", slug, index, p, err)
		}
		return p
	}
	if one, other := of("a", 7), of("a", 7); one != other {
		t.Error("the same value is decoded twice")
	}
	of("b", 7)
	of("b", 9)
	if _, err := d.of(stored{"k", []byte("%"), 10}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a value that is not base64: %v", err)
	}
	for _, damaged := range []string{"{", "{}", `{"product_id": "other", "slug": "s", "platform_key_hash": "h"}`} {
		var u *Unreadable
		if _, err := d.of(storedAt("products/k", []byte(damaged), 11)); !errors.As(err, &u) || u.ProductID != "k" || u.UserID != "" || u.Index != 11 {
			t.Errorf("a damaged product: %v", err)
		}
	}
}

func TestDecodedIsBounded(t *testing.T) {
	var d decoded
	for n := range maxDecoded + 10 {
		id := fmt.Sprint(n)
		if _, err := d.of(storedAt(id, encode(&engine.Product{ProductID: id, Slug: "s", PlatformKeyHash: "h"}), uint64(n))); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.products) != maxDecoded {
		t.Errorf("%d products are kept, want %d", len(d.products), maxDecoded)
	}
}
