package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

// configured is a resource that has an API.
type configured struct{ api *api }

func (c *configured) Configure(_ context.Context, req resource.ConfigureRequest, _ *resource.ConfigureResponse) {
	c.api, _ = req.ProviderData.(*api) // nil before the provider is configured
}

// object is a resource of a kind.
type object struct {
	configured
	kind kind
}

func (o *object) Metadata(_ context.Context, _ resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = o.kind.name
}

func (o *object) Schema(_ context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	resp.Schema = schema.Schema{Attributes: attributes(o.kind.fields), Blocks: map[string]schema.Block{}}
	resp.Schema.Attributes["id"] = idAttribute
	for _, b := range o.kind.blocks {
		resp.Schema.Blocks[b.name] = schema.SingleNestedBlock{Attributes: attributes(b.fields)}
	}
}

var idAttribute = schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()}}

func attributes(fields []field) map[string]schema.Attribute {
	all := map[string]schema.Attribute{}
	for _, f := range fields {
		switch f.typ {
		case number:
			all[f.name] = schema.NumberAttribute{Required: f.required, Optional: !f.required}
		case list:
			all[f.name] = schema.ListAttribute{Required: f.required, Optional: !f.required, ElementType: types.StringType}
		default:
			a := schema.StringAttribute{Required: f.required, Optional: !f.required, WriteOnly: f.writeOnly}
			if f.replace {
				a.PlanModifiers = append(a.PlanModifiers, stringplanmodifier.RequiresReplace())
			}
			if f.preset != "" {
				a.Computed, a.Default = true, stringdefault.StaticString(f.preset)
			}
			all[f.name] = a
		}
	}
	return all
}

// write creates or replaces the object with the plan's values, and the configuration's
// where these are write-only.
func (o *object) write(ctx context.Context, path string, plan tfsdk.Plan, config tfsdk.Config, state *tfsdk.State, report *diag.Diagnostics) {
	planned, configured := decode(plan.Raw).(map[string]any), decode(config.Raw).(map[string]any)
	all := map[string]any{}
	for name, value := range planned {
		all[name] = value
	}
	for _, f := range o.kind.fields {
		if f.writeOnly {
			all[f.name] = configured[f.name]
		}
	}
	sent, err := body(o.kind.fields, o.kind.blocks, all)
	if err != nil {
		report.AddError(o.kind.name, err.Error())
		return
	}
	var got map[string]any
	if err := o.api.call(ctx, http.MethodPut, fill(path, planned), sent, &got); err != nil {
		report.AddError(o.kind.name, err.Error())
		return
	}
	switch {
	case o.kind.id == "":
		planned["id"] = planned[o.kind.identity]
	case planned["id"] == nil:
		planned["id"] = got[o.kind.id]
	}
	keep(ctx, state, planned)
}

// keep puts values into the state.
func keep(ctx context.Context, state *tfsdk.State, values map[string]any) {
	state.Raw = encode(state.Schema.Type().TerraformType(ctx), values)
}

func (o *object) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	o.write(ctx, o.kind.create, req.Plan, req.Config, &resp.State, &resp.Diagnostics)
}

func (o *object) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	path := o.kind.object
	if o.kind.create == "/v1/namespace" { // the one that is changed where it is created
		path = o.kind.create
	}
	o.write(ctx, path, req.Plan, req.Config, &resp.State, &resp.Diagnostics)
}

func (o *object) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	values := decode(req.State.Raw).(map[string]any)
	var got map[string]any
	err := o.api.call(ctx, http.MethodGet, fill(o.kind.object, values), nil, &got)
	switch {
	case errors.Is(err, errAbsent):
		resp.State.Raw = tftypes.NewValue(req.State.Raw.Type(), nil)
	case err != nil:
		resp.Diagnostics.AddError(o.kind.name, err.Error())
	default:
		refresh(o.kind.fields, o.kind.blocks, got, values)
		keep(ctx, &resp.State, values)
	}
}

func (o *object) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	values := decode(req.State.Raw).(map[string]any)
	if err := o.api.call(ctx, http.MethodDelete, fill(o.kind.object, values), nil, nil); err != nil && !errors.Is(err, errAbsent) {
		resp.Diagnostics.AddError(o.kind.name, err.Error())
	}
}
