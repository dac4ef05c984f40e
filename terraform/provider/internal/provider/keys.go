package provider

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework/ephemeral"
	"github.com/hashicorp/terraform-plugin-framework/ephemeral/schema"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// platformKey is the ephemeral resource orch_platform_key.
type platformKey struct{ connected }

// engineKey is the ephemeral resource orch_engine_key.
type engineKey struct{ connected }

var (
	_ ephemeral.EphemeralResourceWithConfigure = (*platformKey)(nil)
	_ ephemeral.EphemeralResourceWithConfigure = (*engineKey)(nil)
)

type platformKeyModel struct {
	ProductID   types.String `tfsdk:"product_id"`
	Generation  types.Int64  `tfsdk:"generation"`
	PlatformKey types.String `tfsdk:"platform_key"`
}

// Metadata names the ephemeral resource.
func (k *platformKey) Metadata(_ context.Context, req ephemeral.MetadataRequest, resp *ephemeral.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_platform_key"
}

// Configure takes the connection.
func (k *platformKey) Configure(_ context.Context, req ephemeral.ConfigureRequest, resp *ephemeral.ConfigureResponse) {
	k.connect(req.ProviderData, &resp.Diagnostics)
}

// Schema describes the ephemeral resource.
func (k *platformKey) Schema(_ context.Context, _ ephemeral.SchemaRequest, resp *ephemeral.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "The platform key that an `orch_product` of the same configuration creates in this apply. It is never written into a plan or the state.\n\n" +
			"The service returns a platform key only once, when it creates the product or rotates the key. So `platform_key` has a value only in the apply in which that happens, and is null in every other plan and apply. " +
			"Nothing is rotated to read it. Use it to store the key where the product reads it, in something that changes only together with `platform_key_generation`: " +
			"a write-only argument with that generation as its version, or a provisioner with it in `triggers_replace`, as in the example.\n\n" +
			"If the key could not be stored, because that step failed, it is lost. Give `platform_key_rotation` of the product a new value: that creates another one. Let the step that stores the key fail if the key is empty, as in the example.",
		Attributes: map[string]schema.Attribute{
			"product_id":   schema.StringAttribute{Required: true, MarkdownDescription: "The `id` of the `orch_product`, which has to be managed with the same provider configuration."},
			"generation":   schema.Int64Attribute{Required: true, MarkdownDescription: "The `platform_key_generation` of the `orch_product`."},
			"platform_key": schema.StringAttribute{Computed: true, Sensitive: true, MarkdownDescription: "The key, or null if this apply did not create it."},
		},
	}
}

// Open returns the key if this process has created it. Terraform opens ephemeral resources in
// every plan, so it must not rotate the key.
func (k *platformKey) Open(ctx context.Context, req ephemeral.OpenRequest, resp *ephemeral.OpenResponse) {
	var m platformKeyModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	m.PlatformKey = types.StringNull()
	if key, ok := k.fresh.get(m.ProductID.ValueString(), m.Generation.ValueInt64()); ok {
		m.PlatformKey = types.StringValue(key)
	}
	resp.Diagnostics.Append(resp.Result.Set(ctx, &m)...)
}

type engineKeyModel struct {
	UserID   types.String `tfsdk:"user_id"`
	EngineID types.String `tfsdk:"engine_id"`
	URL      types.String `tfsdk:"url"`
	APIKey   types.String `tfsdk:"api_key"`
}

// Metadata names the ephemeral resource.
func (k *engineKey) Metadata(_ context.Context, req ephemeral.MetadataRequest, resp *ephemeral.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_engine_key"
}

// Configure takes the connection.
func (k *engineKey) Configure(_ context.Context, req ephemeral.ConfigureRequest, resp *ephemeral.ConfigureResponse) {
	k.connect(req.ProviderData, &resp.Diagnostics)
}

// Schema describes the ephemeral resource.
func (k *engineKey) Schema(_ context.Context, _ ephemeral.SchemaRequest, resp *ephemeral.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "The current key of a user's engine, and where the engine serves. It is read in every plan and apply, and never written into a plan or the state. Needs the provider's `platform_key`.",
		Attributes: map[string]schema.Attribute{
			"user_id":   schema.StringAttribute{Required: true, MarkdownDescription: "The user."},
			"engine_id": schema.StringAttribute{Optional: true, Computed: true, MarkdownDescription: "The engine's id. If it is set, the key is read only from this engine, not from another one of the same user. If the same configuration creates the engine, set it to the `id` of the `orch_engine`: then the key is read after that."},
			"url":       schema.StringAttribute{Computed: true, MarkdownDescription: "Where the engine serves. Null while it has no process."},
			"api_key":   schema.StringAttribute{Computed: true, Sensitive: true, MarkdownDescription: "The engine's key."},
		},
	}
}

// Open reads the key.
func (k *engineKey) Open(ctx context.Context, req ephemeral.OpenRequest, resp *ephemeral.OpenResponse) {
	var m engineKeyModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	c, err := k.platform()
	if err != nil {
		explain(&resp.Diagnostics, fmt.Sprintf("The key of the engine of %q could not be read", m.UserID.ValueString()), err)
		return
	}
	now, err := c.Engine(ctx, m.UserID.ValueString())
	if err == nil && known(m.EngineID) && m.EngineID.ValueString() != now.EngineID {
		err = fmt.Errorf("this user's engine is %s, and not %s any more", now.EngineID, m.EngineID.ValueString())
	}
	if err != nil {
		explain(&resp.Diagnostics, fmt.Sprintf("The key of the engine of %q could not be read", m.UserID.ValueString()), err)
		return
	}
	m.EngineID, m.URL, m.APIKey = types.StringValue(now.EngineID), textOf(now.URL), textOf(now.APIKey)
	resp.Diagnostics.Append(resp.Result.Set(ctx, &m)...)
}
