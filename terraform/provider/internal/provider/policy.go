package provider

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	datasource "github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
)

// policyField is a field of a product's policy. Its name is the name in the API.
type policyField struct {
	kind attr.Type
	what string
}

var setOfStrings = types.SetType{ElemType: types.StringType}

// policyFields are all fields of a policy; a test compares them with client.Policy.
var policyFields = map[string]policyField{
	"max_engines":    {types.Int64Type, "How many engines the product may have, in any state. 0 allows none."},
	"rate_limit_rpm": {types.Int64Type, "How many admits per minute the product may make. 0 allows none."},
	"engine_image":   {types.StringType, "The image of new engines, instead of the service's default."},
	"idle_timeout_s": {types.Int64Type, "After how many seconds without use an engine is put to sleep. 0: never."},
	"cpu_mhz":        {types.Int64Type, "The CPU that each engine reserves, in MHz. An engine that exists gets it at its next start or wake."},
	"memory_mb":      {types.Int64Type, "The memory that each engine reserves, in MiB, at least 10. An engine that exists gets it at its next start or wake."},
	"brain_mb":       {types.Int64Type, "The limit of each engine's volume, in MiB, where nodes can enforce one."},
	"allowed_images": {setOfStrings, "Glob patterns of the images that engines may have besides the default. `*` matches no slash, `**` does."},
	"warm_pool":      {types.Int64Type, "How many engines are kept running in advance, for new users."},
	"node_pool":      {types.StringType, "The Nomad node pool in which the product's engines run."},
	"sleep_mode":     {types.StringType, "What happens to a sleeping engine: `stop` ends its process, `pause` freezes it in memory where the driver can."},
	"isolation":      {types.StringType, "What separates the product's containers from their node: `runc`, `gvisor` or `kata`."},
	"key_proof_path": {types.StringType, "A path of the product's engines that requires the engine's key."},

	"snapshot_interval_s": {types.Int64Type, "After how many seconds the service takes a snapshot of an engine, at least 300. 0: it takes none by itself."},
	"on_node_lost":        {types.StringType, "What happens to an engine whose node does not respond: `wait` (the service's default), or `restore`: it comes up on another node, with its newest snapshot and a new key."},
	"node_lost_after_s":   {types.Int64Type, "For how many seconds the node does not respond before that, at least 60. The service's default is 600."},

	"snapshot_keep": {types.Int64Type, "How many snapshots of an engine are kept, at least 1. The service's default is 7."},
}

func policyTypes() map[string]attr.Type {
	all := map[string]attr.Type{}
	for name, f := range policyFields {
		all[name] = f.kind
	}
	return all
}

func policyAttribute() schema.SingleNestedAttribute {
	fields := map[string]schema.Attribute{}
	for name, f := range policyFields {
		switch f.kind {
		case types.Int64Type:
			fields[name] = schema.Int64Attribute{Optional: true, MarkdownDescription: f.what}
		case types.StringType:
			fields[name] = schema.StringAttribute{Optional: true, MarkdownDescription: f.what}
		default:
			fields[name] = schema.SetAttribute{Optional: true, ElementType: types.StringType, MarkdownDescription: f.what}
		}
	}
	return schema.SingleNestedAttribute{
		Optional: true, Attributes: fields,
		MarkdownDescription: "The product's limits and settings. A field that is left out means no limit, or the default of the service. A lower limit removes no engine.",
	}
}

func policyDataAttribute() datasource.SingleNestedAttribute {
	fields := map[string]datasource.Attribute{}
	for name, f := range policyFields {
		switch f.kind {
		case types.Int64Type:
			fields[name] = datasource.Int64Attribute{Computed: true, MarkdownDescription: f.what}
		case types.StringType:
			fields[name] = datasource.StringAttribute{Computed: true, MarkdownDescription: f.what}
		default:
			fields[name] = datasource.SetAttribute{Computed: true, ElementType: types.StringType, MarkdownDescription: f.what}
		}
	}
	return datasource.SingleNestedAttribute{Computed: true, Attributes: fields, MarkdownDescription: "The product's limits and settings. A field that is null means no limit, or the default of the service."}
}

// policyOf converts a policy to the client's type. What is null or not known yet is absent.
func policyOf(o types.Object) (p client.Policy, err error) {
	fields := map[string]any{}
	for name, value := range o.Attributes() {
		if value.IsNull() || value.IsUnknown() {
			continue
		}
		switch v := value.(type) {
		case types.Int64:
			fields[name] = v.ValueInt64()
		case types.String:
			fields[name] = v.ValueString()
		case types.Set:
			texts := []string{}
			for _, e := range v.Elements() {
				if s, ok := e.(types.String); ok && !s.IsUnknown() {
					texts = append(texts, s.ValueString())
				}
			}
			fields[name] = texts
		}
	}
	b, err := json.Marshal(fields)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	return p, err
}

// checkPolicy reports each mistake in a policy. The rules are the service's.
func checkPolicy(o types.Object, diags *diag.Diagnostics) {
	p, err := policyOf(o)
	if err == nil {
		// The conversion does not compile if one of the two types has a field more.
		err = (*engine.Policy)(&p).Check()
	}
	if err == nil {
		return
	}
	mistakes := []error{err}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		mistakes = joined.Unwrap()
	}
	for _, m := range mistakes {
		diags.AddAttributeError(path.Root("policy"), "The service would refuse this policy", sentence(m.Error()))
	}
}

// policyObject converts a policy of the service. The service does not distinguish an absent
// field from an empty one; prior, which is the value in the configuration or the state, does,
// and is kept where it means the same.
func policyObject(p client.Policy, prior types.Object) (types.Object, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return prior, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return prior, err
	}
	if len(fields) == 0 && prior.IsNull() {
		return types.ObjectNull(policyTypes()), nil
	}
	values := map[string]attr.Value{}
	for name, f := range policyFields {
		switch f.kind {
		case types.Int64Type:
			var n *int64
			err = decode(fields[name], &n)
			values[name] = types.Int64PointerValue(n)
		case types.StringType:
			var s *string
			err = decode(fields[name], &s)
			values[name] = types.StringPointerValue(s)
		default:
			var texts []string
			err = decode(fields[name], &texts)
			values[name] = setOf(texts)
		}
		if err != nil {
			return prior, fmt.Errorf("policy.%s: %w", name, err)
		}
		if was := prior.Attributes()[name]; values[name].IsNull() && isEmpty(was) {
			values[name] = was
		}
	}
	o, diags := types.ObjectValue(policyTypes(), values)
	if diags.HasError() {
		return prior, fmt.Errorf("policy: %s", diags[0].Detail())
	}
	return o, nil
}

func decode(raw json.RawMessage, into any) error {
	if raw == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}

// setOf returns a null set for no texts.
func setOf(texts []string) types.Set {
	if len(texts) == 0 {
		return types.SetNull(types.StringType)
	}
	elements := make([]attr.Value, len(texts))
	for i, s := range texts {
		elements[i] = types.StringValue(s)
	}
	return types.SetValueMust(types.StringType, elements)
}

// isEmpty reports whether a value is one that the service treats as absent.
func isEmpty(v attr.Value) bool {
	switch v := v.(type) {
	case types.String:
		return !v.IsNull() && !v.IsUnknown() && v.ValueString() == ""
	case types.Set:
		return !v.IsNull() && !v.IsUnknown() && len(v.Elements()) == 0
	}
	return false
}
