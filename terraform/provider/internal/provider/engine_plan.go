package provider

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"

	"github.com/septemberai/orch/engine"
)

// Schema describes the resource.
func (r *engineResource) Schema(ctx context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	computed := func(what string) schema.StringAttribute {
		return schema.StringAttribute{Computed: true, MarkdownDescription: what, PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()}}
	}
	resp.Schema = schema.Schema{
		MarkdownDescription: "The engine of one user: a process with a private volume and its own key. Needs the provider's `platform_key`.\n\n" +
			"Products usually create engines themselves, by an admit with `auto_provision`. This resource is for the few engines that belong to the infrastructure, such as one for tests or for a demo.\n\n" +
			"**Destroying an engine destroys its volume, with everything that the user's engine remembers.** `deletion_protection` is on by default: a plan that would destroy or replace the engine fails.\n\n" +
			"The engine's key is not in the state; the ephemeral resource [`orch_engine_key`](../ephemeral-resources/engine_key.md) reads it. " +
			"Whether the engine runs, sleeps or is stopped is not managed: it changes with the engine's use.",
		Attributes: map[string]schema.Attribute{
			"id": computed("The `engine_id`."),
			"user_id": schema.StringAttribute{
				Required: true, PlanModifiers: []planmodifier.String{stringplanmodifier.RequiresReplace()},
				MarkdownDescription: "The user: 1 to 256 bytes of UTF-8 without control characters. A change replaces the engine.",
			},
			"engine_version": schema.StringAttribute{
				Optional: true, Computed: true,
				PlanModifiers:       []planmodifier.String{stringplanmodifier.RequiresReplaceIfConfigured(), stringplanmodifier.UseStateForUnknown()},
				MarkdownDescription: "The engine's image. Default: the product's `engine_image`, or the default of the service. A change replaces the engine.",
			},
			"deletion_protection": schema.BoolAttribute{
				Optional: true, Computed: true, Default: booldefault.StaticBool(true),
				MarkdownDescription: "Whether a plan that would destroy or replace the engine fails. Default: `true`. To destroy the engine, set it to `false` and apply that first.",
			},
			"image_digest": computed("The digest that is started, even if the image's tag has moved since. Null: the image is not pinned."),
			"url":          computed("Where the engine serves. Null while it has no process."),
			"status":       computed("The engine's state when it was last read: `provisioning`, `running`, `sleeping`, `stopped` or `failed`."),
			"reason":       computed("Why the engine failed, as a stable identifier."),
			"created_at":   computed("When the engine was created, in RFC 3339."),
			"timeouts":     timeouts.Attributes(ctx, timeouts.Opts{Create: true, Read: true, Delete: true}),
		},
	}
}

// ValidateConfig applies the service's rules to the user_id.
func (r *engineResource) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	var m engineModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() || m.UserID.IsUnknown() || m.UserID.IsNull() {
		return
	}
	if err := engine.CheckUserID(m.UserID.ValueString()); err != nil {
		resp.Diagnostics.AddAttributeError(path.Root("user_id"), "The user_id is not valid", sentence(err.Error()))
	}
}

// ModifyPlan refuses plans that would destroy a protected engine.
func (r *engineResource) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if req.State.Raw.IsNull() {
		return // a create
	}
	var was engineModel
	resp.Diagnostics.Append(req.State.Get(ctx, &was)...)
	if resp.Diagnostics.HasError() {
		return
	}
	if req.Plan.Raw.IsNull() {
		was.checkProtection(&resp.Diagnostics)
		return
	}
	var m engineModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	if !m.UserID.Equal(was.UserID) || !m.Version.Equal(was.Version) { // it would be replaced
		was.checkProtection(&resp.Diagnostics)
	}
}

// checkProtection adds an error if the engine is protected, by the state: what the
// configuration says counts once it is applied.
func (m *engineModel) checkProtection(diags *diag.Diagnostics) {
	if m.Protection.ValueBool() {
		diags.AddAttributeError(path.Root("deletion_protection"), fmt.Sprintf("The engine of %q is protected", m.UserID.ValueString()),
			fmt.Sprintf("To destroy or replace engine %s would destroy its volume, with everything that it remembers of its user. "+
				"If that is what you want, set deletion_protection = false, apply, and then destroy or replace it. To let Terraform only forget the engine: terraform state rm ADDRESS", m.ID.ValueString()))
	}
}
