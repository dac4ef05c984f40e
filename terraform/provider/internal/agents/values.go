package main

import (
	"encoding/json"
	"math/big"
	"reflect"

	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

// decode returns a value of Terraform as encoding/json would. Null and unknown are nil.
func decode(v tftypes.Value) any {
	if v.IsNull() || !v.IsKnown() {
		return nil
	}
	must := func(err error) {
		if err != nil {
			panic(err) // the type was checked
		}
	}
	switch t := v.Type(); {
	case t.Is(tftypes.String):
		var s string
		must(v.As(&s))
		return s
	case t.Is(tftypes.Bool):
		var b bool
		must(v.As(&b))
		return b
	case t.Is(tftypes.Number):
		n := new(big.Float)
		must(v.As(&n))
		f, _ := n.Float64()
		return f
	case t.Is(tftypes.List{}), t.Is(tftypes.Set{}):
		var items []tftypes.Value
		must(v.As(&items))
		all := make([]any, 0, len(items))
		for _, i := range items {
			all = append(all, decode(i))
		}
		return all
	}
	var fields map[string]tftypes.Value
	must(v.As(&fields))
	return decodeAll(fields)
}

func decodeAll(fields map[string]tftypes.Value) map[string]any {
	all := map[string]any{}
	for name, f := range fields {
		all[name] = decode(f)
	}
	return all
}

// encode is the reverse of decode.
func encode(t tftypes.Type, x any) tftypes.Value {
	switch x := x.(type) {
	case nil:
		return tftypes.NewValue(t, nil)
	case []any:
		elem := t.(tftypes.List).ElementType
		all := make([]tftypes.Value, 0, len(x))
		for _, i := range x {
			all = append(all, encode(elem, i))
		}
		return tftypes.NewValue(t, all)
	case map[string]any:
		all := map[string]tftypes.Value{}
		if object, ok := t.(tftypes.Object); ok {
			for name, t := range object.AttributeTypes {
				all[name] = encode(t, x[name])
			}
		} else {
			for name, v := range x {
				all[name] = encode(t.(tftypes.Map).ElementType, v)
			}
		}
		return tftypes.NewValue(t, all)
	case float64:
		return tftypes.NewValue(t, big.NewFloat(x))
	}
	return tftypes.NewValue(t, x)
}

// body returns the object of the API that arguments describe.
func body(fields []field, blocks []block, values map[string]any) (map[string]any, error) {
	object := map[string]any{}
	for _, f := range fields {
		value := values[f.name]
		if f.api == "" || value == nil {
			continue
		}
		if f.typ == jsonText {
			var decoded any
			if err := json.Unmarshal([]byte(value.(string)), &decoded); err != nil {
				return nil, err
			}
			value = decoded
		}
		object[f.api] = value
	}
	for _, b := range blocks {
		if values, ok := values[b.name].(map[string]any); ok {
			inner, err := body(b.fields, nil, values)
			if err != nil {
				return nil, err
			}
			object[b.api] = inner
		}
	}
	return object, nil
}

// refresh changes arguments to what an object of the API has.
func refresh(fields []field, blocks []block, object, values map[string]any) {
	for _, f := range fields {
		got := object[f.api]
		was := values[f.name]
		switch {
		case f.api == "" || f.writeOnly:
			continue
		case was == nil && (got == nil || got == "" || reflect.DeepEqual(got, []any{})):
			continue // the agent's own default
		case f.typ == jsonText:
			if text, ok := was.(string); ok && contains(got, text) {
				continue
			}
			b, _ := json.Marshal(got) // it was decoded from JSON
			got = string(b)
		}
		values[f.name] = got
	}
	for _, b := range blocks {
		inner, there := object[b.api].(map[string]any)
		values2, was := values[b.name].(map[string]any)
		if !there {
			values[b.name] = nil
			continue
		}
		if !was {
			values2 = map[string]any{}
		}
		refresh(b.fields, nil, inner, values2)
		if was || len(values2) > 0 {
			values[b.name] = values2
		}
	}
}

// contains says whether an object has all fields of another, which is JSON, with equal values.
func contains(object any, text string) bool {
	var want map[string]any
	got, ok := object.(map[string]any)
	if err := json.Unmarshal([]byte(text), &want); err != nil || !ok {
		return false
	}
	for name, value := range want {
		if !reflect.DeepEqual(got[name], value) {
			return false
		}
	}
	return true
}
