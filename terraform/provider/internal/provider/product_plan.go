package provider

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework-validators/int64validator"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/int64default"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/septemberai/orch/engine"
)

// Schema describes the resource.
func (p *product) Schema(ctx context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	replace := []planmodifier.String{stringplanmodifier.RequiresReplace()}
	stays := []planmodifier.String{stringplanmodifier.UseStateForUnknown()}
	resp.Schema = schema.Schema{
		MarkdownDescription: "A product: a tenant with its own users, engines, limits and platform key. Needs the provider's `admin_key`.\n\n" +
			"The service returns a platform key once, when it creates it. By default the key is not written into the state: " +
			"the ephemeral resource [`orch_platform_key`](../ephemeral-resources/platform_key.md) has it in the apply that created it, to be stored where the product reads it. " +
			"With `platform_key_in_state = true` the key is in the state, in plain text, for everybody who can read the state.\n\n" +
			"A product with engines cannot be destroyed: engines hold the memory of users.",
		Attributes: map[string]schema.Attribute{
			"id":           schema.StringAttribute{Computed: true, PlanModifiers: stays, MarkdownDescription: "The `product_id`."},
			"slug":         schema.StringAttribute{Required: true, PlanModifiers: replace, MarkdownDescription: "The product's unique name: 1 to 40 characters of `a-z`, `0-9` and `-`. Another slug is another product: a change replaces the product, which then has a new id and a new platform key."},
			"display_name": schema.StringAttribute{Required: true, PlanModifiers: replace, MarkdownDescription: "The product's name for people. The service cannot change it: a change replaces the product, which then has a new id and a new platform key."},
			"policy":       policyAttribute(),
			"created_at":   schema.StringAttribute{Computed: true, PlanModifiers: stays, MarkdownDescription: "When the product was created, in RFC 3339."},
			"platform_key_rotation": schema.StringAttribute{
				Optional:            true,
				MarkdownDescription: "Any change of this value, for example of a date, creates a new platform key. The first value that is set after the product was created or imported is a change, too.",
			},
			"platform_key_overlap_seconds": schema.Int64Attribute{
				Optional: true, Computed: true, Default: int64default.StaticInt64(defaultOverlap), Validators: []validator.Int64{int64validator.Between(0, 86400)},
				MarkdownDescription: "How long the old key stays valid after a rotation, in seconds: 0 to 86400, default 3600. With 0, the old key and all earlier ones become invalid at once: use it if a key has leaked.",
			},
			"platform_key_in_state": schema.BoolAttribute{
				Optional: true, Computed: true, Default: booldefault.StaticBool(false),
				MarkdownDescription: "Whether `platform_key` contains the key. Default: `false`. For a product that exists, `true` needs a rotation in the same change, because the service cannot return a key a second time.",
			},
			"platform_key_generation": schema.Int64Attribute{
				Computed:            true,
				MarkdownDescription: "How many platform keys Terraform has created for this product. It is known only after apply whenever the apply will create a key.",
			},
			"platform_key": schema.StringAttribute{Computed: true, Sensitive: true, MarkdownDescription: "The platform key, if `platform_key_in_state` is `true`; else null."},
			"timeouts":     timeouts.AttributesAll(ctx),
		},
	}
}

// ValidateConfig applies the service's rules to what the configuration says.
func (p *product) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	var m productModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	if s := m.Slug; !s.IsNull() && !s.IsUnknown() {
		if err := engine.CheckSlug(s.ValueString()); err != nil {
			resp.Diagnostics.AddAttributeError(path.Root("slug"), "The slug is not valid", sentence(err.Error()))
		}
	}
	if s := m.DisplayName; !s.IsNull() && !s.IsUnknown() {
		if err := engine.CheckDisplayName(s.ValueString()); err != nil {
			resp.Diagnostics.AddAttributeError(path.Root("display_name"), "The display name is not valid", sentence(err.Error()))
		}
	}
	checkPolicy(m.Policy, &resp.Diagnostics)
}

// ModifyPlan plans what becomes of the platform key. Its generation is unknown in a plan that
// creates a key: Terraform then opens the ephemeral resource that depends on it only in the
// apply, after the key was created.
func (p *product) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if req.Plan.Raw.IsNull() {
		return // a destroy
	}
	var m productModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	created := req.State.Raw.IsNull()
	var was productModel
	if !created {
		resp.Diagnostics.Append(req.State.Get(ctx, &was)...)
	}
	rotates := !created && !m.Rotation.Equal(was.Rotation)
	m.Generation, m.Key = types.Int64Unknown(), types.StringUnknown()
	if !created && !rotates {
		m.Generation, m.Key = was.Generation, was.Key
	}
	switch {
	case m.InState.IsUnknown():
		m.Key = types.StringUnknown()
	case !m.InState.ValueBool():
		m.Key = types.StringNull()
	case m.Key.IsNull():
		resp.Diagnostics.AddAttributeError(path.Root("platform_key_in_state"), "The platform key can get into the state only by a rotation",
			"The service cannot return the key of a product that exists. Give platform_key_rotation a new value in the same change: then the new key is written into the state.")
	}
	if rotates {
		resp.Diagnostics.AddAttributeWarning(path.Root("platform_key_rotation"), fmt.Sprintf("The platform key of the product %q will be rotated", was.Slug.ValueString()), overlap(m.Overlap))
	}
	resp.Diagnostics.Append(resp.Plan.Set(ctx, &m)...)
}

func overlap(seconds types.Int64) string {
	switch {
	case seconds.IsUnknown():
		return "The old key stays valid for platform_key_overlap_seconds."
	case seconds.ValueInt64() == 0:
		return "The old key and all earlier ones become invalid at once (platform_key_overlap_seconds is 0)."
	}
	return fmt.Sprintf("The old key stays valid for %d seconds after that (platform_key_overlap_seconds).", seconds.ValueInt64())
}
