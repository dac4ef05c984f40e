package registry

import (
	"encoding/json"
	"fmt"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/septemberai/orch/engine"
)

// object decodes a JSON object.
func object(t interface{ Fatal(...any) }, value []byte) map[string]any {
	var fields map[string]any
	if err := json.Unmarshal(value, &fields); err != nil {
		t.Fatal(err)
	}
	return fields
}

// drawFields generates fields that no version knows.
func drawFields(t *rapid.T, label string) map[string]any {
	fields := map[string]any{}
	for i := range rapid.IntRange(0, 3).Draw(t, label) {
		fields[fmt.Sprintf("new_%s_%d", label, i)] = rapid.SampledFrom([]any{
			"text", `quoted "<&>" \ ü`, 7.5, true, nil, []any{"a", 1.0}, map[string]any{"state": "running", "n": 1.0},
		}).Draw(t, label)
	}
	return fields
}

// withFields adds fields to a record, and inner to one of its objects.
func withFields(t *rapid.T, value []byte, inside string, fields, inner map[string]any) []byte {
	all := object(t, value)
	maps.Copy(all, fields)
	if in, ok := all[inside].(map[string]any); ok {
		maps.Copy(in, inner)
	}
	return marshal(all)
}

// A row from a newer version of the service keeps its unknown fields through any number of
// changes; an operation's fields are removed with the operation.
func TestUnknownFieldsOfARowAreKept(t *testing.T) {
	s := New(nil, "t/")
	rapid.Check(t, func(t *rapid.T) {
		e := newEngine(&engine.Product{ProductID: "p", Slug: "s"}, rapid.SampledFrom([]string{"user", `<"&>`, "ü"}).Draw(t, "user"))
		fields, inner := drawFields(t, "row"), drawFields(t, "op")
		key, index := s.engineKey(e.ProductID, e.UserID), uint64(1)
		value := withFields(t, encode(e), "op", fields, inner)
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			read, err := s.decodeEngine(storedAt(key, value, index))
			if err != nil {
				t.Fatal(err)
			}
			next := read.Clone()
			switch rapid.SampledFrom([]string{"step", "end", "another"}).Draw(t, "change") {
			case "step":
				if next.Op != nil {
					next.Op.Step = "boot"
				}
			case "end":
				next.Op, inner = nil, nil
			case "another":
				next.Op, inner = &engine.Operation{ID: newName(), Kind: engine.OpStop, Step: "quiesce"}, nil
			}
			next.State, next.KeyVersion = engine.Running, next.KeyVersion+1
			plain := *next
			plain.Stored = nil
			value, index = encode(next), index+1
			want := withFields(t, encode(&plain), "op", fields, inner)
			if diff := cmp.Diff(object(t, want), object(t, value)); diff != "" {
				t.Fatalf("want (-), got (+):\n%s", diff)
			}
		}
	})
}

// Likewise for products; a new policy has exactly the fields that the admin set.
func TestUnknownFieldsOfAProductAreKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, n := newProduct("slug", nil), 5
		p.Policy.WarmPool = &n
		fields, inner := drawFields(t, "product"), drawFields(t, "policy")
		read, err := DecodeProduct(withFields(t, encode(p), "policy", fields, inner))
		if err != nil {
			t.Fatal(err)
		}
		read.Revision++
		p.Revision++
		if diff := cmp.Diff(object(t, withFields(t, encode(p), "policy", fields, inner)), object(t, EncodeProduct(read))); diff != "" {
			t.Fatalf("want (-), got (+):\n%s", diff)
		}
	})
}

// BenchmarkDecodeEngine measures the decoding of one row that is new to the mirror; newer
// is one with a field that this version does not know.
func BenchmarkDecodeEngine(b *testing.B) {
	s := New(nil, "t/")
	e := fullRow("some-product-id-of-26-chars", 1)
	value := encode(e)
	for name, value := range map[string][]byte{"known": value, "newer": append(value[:len(value)-1:len(value)-1], `,"new": 1}`...)} {
		b.Run(name, func(b *testing.B) {
			v := storedAt(s.engineKey(e.ProductID, e.UserID), value, 1)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.decodeEngine(v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
