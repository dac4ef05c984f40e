package provider

import (
	"context"
	"iter"

	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/septemberai/orch/client"
)

// engineData is the data source orch_engine, enginesData is orch_engines.
type (
	engineData  struct{ connected }
	enginesData struct{ connected }
)

var (
	_ datasource.DataSourceWithConfigure      = (*engineData)(nil)
	_ datasource.DataSourceWithValidateConfig = (*engineData)(nil)
	_ datasource.DataSourceWithConfigure      = (*enginesData)(nil)
)

// engineView is an engine as the data sources show it, without its key.
type engineView struct {
	EngineID    types.String `tfsdk:"engine_id"`
	UserID      types.String `tfsdk:"user_id"`
	Status      types.String `tfsdk:"status"`
	Reason      types.String `tfsdk:"reason"`
	URL         types.String `tfsdk:"url"`
	Version     types.String `tfsdk:"engine_version"`
	ImageDigest types.String `tfsdk:"image_digest"`
	CreatedAt   types.String `tfsdk:"created_at"`
	ProductID   types.String `tfsdk:"product_id"`
	ProductSlug types.String `tfsdk:"product_slug"`
	NodeID      types.String `tfsdk:"node_id"`
}

func viewOf(e *client.Engine) engineView {
	return engineView{
		EngineID: types.StringValue(e.EngineID), UserID: types.StringValue(e.UserID), Status: types.StringValue(e.Status), Reason: textOf(e.Reason),
		URL: textOf(e.URL), Version: textOf(e.EngineVersion), ImageDigest: textOf(e.ImageDigest), CreatedAt: timeOf(e.CreatedAt),
		ProductID: textOf(e.ProductID), ProductSlug: textOf(e.ProductSlug), NodeID: textOf(e.NodeID),
	}
}

func engineAttributes() map[string]schema.Attribute {
	all := map[string]schema.Attribute{}
	for name, what := range map[string]string{
		"engine_id": "The engine's id.", "user_id": "The user.", "status": "The engine's state.", "reason": "Why the engine failed, as a stable identifier.",
		"url": "Where the engine serves. Null while it has no process.", "engine_version": "The engine's image.",
		"image_digest": "The digest that is started, even if the image's tag has moved since.", "created_at": "When the engine was created, in RFC 3339.",
		"product_id":   "The product. Only with the admin key.",
		"product_slug": "The product's slug. Only with the admin key.",
		"node_id":      "The Nomad node. Only with the admin key, and null before the engine has a node.",
	} {
		all[name] = schema.StringAttribute{Computed: true, MarkdownDescription: what}
	}
	return all
}

// Metadata names the data source.
func (d *engineData) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_engine"
}

// Configure takes the connection.
func (d *engineData) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.connect(req.ProviderData, &resp.Diagnostics)
}

// Schema describes the data source.
func (d *engineData) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	attributes := engineAttributes()
	attributes["user_id"] = schema.StringAttribute{Optional: true, Computed: true, MarkdownDescription: "The user. Needs the provider's `platform_key`. Either this or `engine_id` has to be set."}
	attributes["engine_id"] = schema.StringAttribute{Optional: true, Computed: true, MarkdownDescription: "The engine's id, of whatever product. Needs the provider's `admin_key`."}
	resp.Schema = schema.Schema{
		MarkdownDescription: "An engine: a product's, by its user, or any, by its id. Its key is not in it; see the ephemeral resource `orch_engine_key`.",
		Attributes:          attributes,
	}
}

// ValidateConfig requires one of the two ids.
func (d *engineData) ValidateConfig(ctx context.Context, req datasource.ValidateConfigRequest, resp *datasource.ValidateConfigResponse) {
	var m engineView
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if m.UserID.IsNull() == m.EngineID.IsNull() && !m.UserID.IsUnknown() && !m.EngineID.IsUnknown() {
		resp.Diagnostics.AddError("It is not clear which engine is meant", "Set either user_id or engine_id.")
	}
}

// Read reads the engine.
func (d *engineData) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m engineView
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	now, err := d.engine(ctx, &m)
	if err != nil {
		explain(&resp.Diagnostics, "The engine could not be read", err)
		return
	}
	m = viewOf(now)
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

func (d *engineData) engine(ctx context.Context, m *engineView) (*client.Engine, error) {
	if m.UserID.IsNull() {
		c, err := d.admin()
		if err != nil {
			return nil, err
		}
		return c.EngineByID(ctx, m.EngineID.ValueString())
	}
	c, err := d.platform()
	if err != nil {
		return nil, err
	}
	return c.Engine(ctx, m.UserID.ValueString())
}

type enginesModel struct {
	Status    types.String `tfsdk:"status"`
	ProductID types.String `tfsdk:"product_id"`
	NodeID    types.String `tfsdk:"node_id"`
	Reason    types.String `tfsdk:"reason"`
	Engines   []engineView `tfsdk:"engines"`
}

// Metadata names the data source.
func (d *enginesData) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_engines"
}

// Configure takes the connection.
func (d *enginesData) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.connect(req.ProviderData, &resp.Diagnostics)
}

// Schema describes the data source.
func (d *enginesData) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	filter := func(what string) schema.StringAttribute {
		return schema.StringAttribute{Optional: true, MarkdownDescription: what}
	}
	status := filter("Only engines in this state.")
	status.Validators = []validator.String{stringvalidator.OneOf(client.States...)}
	resp.Schema = schema.Schema{
		MarkdownDescription: "All matching engines, oldest first, without keys: the engines of the product, if the provider has a `platform_key` and none of the filters for the admin is set; otherwise those of all products, which needs the provider's `admin_key`.",
		Attributes: map[string]schema.Attribute{
			"status":     status,
			"product_id": filter("Only engines of this product. For the admin."),
			"node_id":    filter("Only engines on this Nomad node. For the admin."),
			"reason":     filter("Only engines that failed for this reason, for example `crashed`. For the admin."),
			"engines":    schema.ListNestedAttribute{Computed: true, NestedObject: schema.NestedAttributeObject{Attributes: engineAttributes()}, MarkdownDescription: "The engines."},
		},
	}
}

// Read reads all pages.
func (d *enginesData) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m enginesModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	all, err := d.list(ctx, &m)
	m.Engines = []engineView{}
	if err == nil {
		for e, rerr := range all {
			if err = rerr; err != nil {
				break
			}
			m.Engines = append(m.Engines, viewOf(&e))
		}
	}
	if err != nil {
		explain(&resp.Diagnostics, "The engines could not be listed", err)
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

// perPage is the service's maximum (docs/openapi.yaml).
const perPage = 1000

func (d *enginesData) list(ctx context.Context, m *enginesModel) (iter.Seq2[client.Engine, error], error) {
	if d.asProduct() && m.ProductID.IsNull() && m.NodeID.IsNull() && m.Reason.IsNull() {
		c, err := d.platform()
		if err != nil {
			return nil, err
		}
		return c.AllEngines(ctx, client.EngineFilter{Status: m.Status.ValueString(), Limit: perPage}), nil
	}
	c, err := d.adminIfNoProduct()
	if err != nil {
		return nil, err
	}
	return c.AllFleetEngines(ctx, client.FleetFilter{
		Status: m.Status.ValueString(), ProductID: m.ProductID.ValueString(), NodeID: m.NodeID.ValueString(), Reason: m.Reason.ValueString(), Limit: perPage,
	}), nil
}
