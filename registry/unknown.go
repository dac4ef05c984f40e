package registry

import (
	"encoding/json"
	"maps"
	"reflect"
	"strings"

	"github.com/septemberai/orch/engine"
)

// unknown are the fields of a record that a newer version of the service wrote and this one
// does not know. They are written again with every change of the record, so that replicas
// of both versions can run at the same time.
type unknown struct {
	fields map[string]json.RawMessage
	// inner are those of one object in the record: an engine's operation with this id, or a
	// product's policy.
	inner map[string]json.RawMessage
	id    string
}

// kind is the fields of a record that this version knows.
type kind struct {
	inside       string // the field whose own unknown fields are kept, too
	known, inner map[string]bool
}

var (
	engineKind  = kind{"op", fieldsOf(reflect.TypeFor[engine.Row]()), fieldsOf(reflect.TypeFor[engine.Operation]())}
	productKind = kind{"policy", fieldsOf(reflect.TypeFor[engine.Product]()), fieldsOf(reflect.TypeFor[engine.Policy]())}
)

// fieldsOf returns the JSON names of a struct's fields.
func fieldsOf(t reflect.Type) map[string]bool {
	names := map[string]bool{}
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
			names[name] = true
		}
	}
	return names
}

// unknownIn returns the fields of a record that this version does not know; nil: there are
// none. id is the id of the object inside.
func (k kind) unknownIn(value []byte, id string) *unknown {
	var fields, inner map[string]json.RawMessage
	if json.Unmarshal(value, &fields) != nil {
		return nil
	}
	_ = json.Unmarshal(fields[k.inside], &inner) // it may be missing
	maps.DeleteFunc(fields, func(name string, _ json.RawMessage) bool { return k.known[name] })
	maps.DeleteFunc(inner, func(name string, _ json.RawMessage) bool { return k.inner[name] })
	if len(fields) == 0 && len(inner) == 0 {
		return nil
	}
	return &unknown{fields, inner, id}
}

// with returns a record with its unknown fields. id is the current id of the object inside:
// if it has changed, its unknown fields are dropped.
func (k kind) with(value []byte, u *unknown, id string) []byte {
	if u == nil {
		return value
	}
	merged := merge(value, u.fields)
	if len(u.inner) == 0 || u.id != id {
		return merged
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(merged, &all) != nil || len(all[k.inside]) == 0 {
		return merged
	}
	all[k.inside] = merge(all[k.inside], u.inner)
	return marshal(all)
}

// merge adds fields to an object.
func merge(object []byte, more map[string]json.RawMessage) []byte {
	var all map[string]json.RawMessage
	if len(more) == 0 || json.Unmarshal(object, &all) != nil || all == nil {
		return object
	}
	maps.Copy(all, more)
	return marshal(all)
}

// opID returns the id of a row's operation, or "".
func opID(e *engine.Row) string {
	if e.Op == nil {
		return ""
	}
	return e.Op.ID
}
