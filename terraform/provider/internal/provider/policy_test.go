package provider

import (
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/septemberai/orch/client"
)

// TestPolicyFields: the resource has the fields of the API, with their types.
func TestPolicyFields(t *testing.T) {
	of := reflect.TypeFor[client.Policy]()
	for i := range of.NumField() {
		f := of.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		want := map[reflect.Kind]attr.Type{reflect.Pointer: types.Int64Type, reflect.String: types.StringType, reflect.Slice: setOfStrings}[f.Type.Kind()]
		if got := policyFields[name]; want == nil || got.kind == nil || !want.Equal(got.kind) || got.what == "" {
			t.Errorf("policy.%s is %v, want %v", name, got.kind, want)
		}
	}
	if len(policyFields) != of.NumField() {
		t.Errorf("%d fields, want %d", len(policyFields), of.NumField())
	}
}

// object returns a policy in which only the given fields are not null.
func object(t *testing.T, fields map[string]attr.Value) types.Object {
	t.Helper()
	all := map[string]attr.Value{}
	for name, f := range policyFields {
		switch f.kind {
		case types.Int64Type:
			all[name] = types.Int64Null()
		case types.StringType:
			all[name] = types.StringNull()
		default:
			all[name] = types.SetNull(types.StringType)
		}
	}
	for name, value := range fields {
		all[name] = value
	}
	o, diags := types.ObjectValue(policyTypes(), all)
	if diags.HasError() {
		t.Fatal(diags)
	}
	return o
}

// TestPolicyConversion: what the service returns for a policy is the same policy.
func TestPolicyConversion(t *testing.T) {
	full := map[string]attr.Value{}
	for name, f := range policyFields {
		switch f.kind {
		case types.Int64Type:
			full[name] = types.Int64Value(0)
		case types.StringType:
			full[name] = types.StringValue("x")
		default:
			full[name] = setOf([]string{"a", "b"})
		}
	}
	for name, o := range map[string]types.Object{
		"null": types.ObjectNull(policyTypes()), "empty": object(t, nil), "full": object(t, full),
		"with what means nothing": object(t, map[string]attr.Value{"engine_image": types.StringValue(""), "allowed_images": types.SetValueMust(types.StringType, nil), "max_engines": types.Int64Value(1)}),
	} {
		t.Run(name, func(t *testing.T) {
			p, err := policyOf(o)
			if err != nil {
				t.Fatal(err)
			}
			back, err := policyObject(p, o)
			if err != nil || !back.Equal(o) {
				t.Errorf("got %s, %v, want %s", back, err, o)
			}
		})
	}
}

// TestPolicyDrift: what somebody else changed is seen.
func TestPolicyDrift(t *testing.T) {
	five, none := 5, 0
	for name, c := range map[string]struct {
		prior types.Object
		now   client.Policy
		want  types.Object
	}{
		"a new policy":    {types.ObjectNull(policyTypes()), client.Policy{MaxEngines: &five}, object(t, map[string]attr.Value{"max_engines": types.Int64Value(5)})},
		"another value":   {object(t, map[string]attr.Value{"max_engines": types.Int64Value(5)}), client.Policy{MaxEngines: &none}, object(t, map[string]attr.Value{"max_engines": types.Int64Value(0)})},
		"a removed field": {object(t, map[string]attr.Value{"max_engines": types.Int64Value(5), "sleep_mode": types.StringValue("stop")}), client.Policy{MaxEngines: &five}, object(t, map[string]attr.Value{"max_engines": types.Int64Value(5)})},
		"no policy":       {object(t, map[string]attr.Value{"allowed_images": setOf([]string{"a"})}), client.Policy{}, object(t, nil)},
		"other images":    {object(t, map[string]attr.Value{"allowed_images": setOf([]string{"a"})}), client.Policy{AllowedImages: []string{"b"}}, object(t, map[string]attr.Value{"allowed_images": setOf([]string{"b"})})},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := policyObject(c.now, c.prior)
			if err != nil || !got.Equal(c.want) {
				t.Errorf("got %s, %v, want %s", got, err, c.want)
			}
		})
	}
	same, err := policyObject(client.Policy{AllowedImages: []string{"b", "a"}}, object(t, map[string]attr.Value{"allowed_images": setOf([]string{"a", "b"})}))
	if err != nil || !same.Equal(object(t, map[string]attr.Value{"allowed_images": setOf([]string{"a", "b"})})) {
		t.Errorf("the order of images is a difference: %s, %v", same, err)
	}
}

// TestCheckPolicy: each mistake is reported, and what is not known yet is none.
func TestCheckPolicy(t *testing.T) {
	var diags diag.Diagnostics
	checkPolicy(object(t, map[string]attr.Value{"max_engines": types.Int64Value(-1), "sleep_mode": types.StringValue("nap"), "node_pool": types.StringUnknown()}), &diags)
	if len(diags) != 2 {
		t.Errorf("got %v, want two mistakes", diags)
	}
	for _, o := range []types.Object{types.ObjectUnknown(policyTypes()), types.ObjectNull(policyTypes()), object(t, map[string]attr.Value{
		"allowed_images": types.SetUnknown(types.StringType), "max_engines": types.Int64Unknown(),
	})} {
		var none diag.Diagnostics
		if checkPolicy(o, &none); len(none) > 0 {
			t.Errorf("%s: %v", o, none)
		}
	}
}
