package provider

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// productData is the data source orch_product.
type productData struct{ connected }

var (
	_ datasource.DataSourceWithConfigure      = (*productData)(nil)
	_ datasource.DataSourceWithValidateConfig = (*productData)(nil)
)

type productDataModel struct {
	ID          types.String `tfsdk:"id"`
	Slug        types.String `tfsdk:"slug"`
	DisplayName types.String `tfsdk:"display_name"`
	Policy      types.Object `tfsdk:"policy"`
	Engines     types.Int64  `tfsdk:"engines"`
	CreatedAt   types.String `tfsdk:"created_at"`
}

// Metadata names the data source.
func (p *productData) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_product"
}

// Configure takes the connection.
func (p *productData) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	p.connect(req.ProviderData, &resp.Diagnostics)
}

// Schema describes the data source.
func (p *productData) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "A product, by its id or its slug. Its platform key cannot be read. Needs the provider's `admin_key`.",
		Attributes: map[string]schema.Attribute{
			"id":           schema.StringAttribute{Optional: true, Computed: true, MarkdownDescription: "The `product_id`. Either this or `slug` has to be set."},
			"slug":         schema.StringAttribute{Optional: true, Computed: true, MarkdownDescription: "The product's unique name."},
			"display_name": schema.StringAttribute{Computed: true, MarkdownDescription: "The product's name for people."},
			"policy":       policyDataAttribute(),
			"engines":      schema.Int64Attribute{Computed: true, MarkdownDescription: "How many engines the product has, in any state."},
			"created_at":   schema.StringAttribute{Computed: true, MarkdownDescription: "When the product was created, in RFC 3339."},
		},
	}
}

// ValidateConfig requires one of the two names.
func (p *productData) ValidateConfig(ctx context.Context, req datasource.ValidateConfigRequest, resp *datasource.ValidateConfigResponse) {
	var m productDataModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if m.ID.IsNull() == m.Slug.IsNull() && !m.ID.IsUnknown() && !m.Slug.IsUnknown() {
		resp.Diagnostics.AddError("It is not clear which product is meant", "Set either id or slug.")
	}
}

// Read reads the product.
func (p *productData) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m productDataModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	c, err := p.admin()
	if err != nil {
		explain(&resp.Diagnostics, "The product could not be read", err)
		return
	}
	id := m.ID.ValueString()
	if m.ID.IsNull() {
		found, err := findProduct(ctx, c, m.Slug.ValueString())
		if err != nil {
			explain(&resp.Diagnostics, "The product could not be read", err)
			return
		}
		id = found.ProductID
	}
	now, err := c.Product(ctx, id)
	if err != nil {
		explain(&resp.Diagnostics, "The product could not be read", err)
		return
	}
	m.ID, m.Slug, m.DisplayName = types.StringValue(now.ProductID), types.StringValue(now.Slug), types.StringValue(now.DisplayName)
	m.Engines, m.CreatedAt = types.Int64Value(int64(now.Engines)), timeOf(now.CreatedAt)
	if m.Policy, err = policyObject(now.Policy, types.ObjectUnknown(policyTypes())); err != nil {
		explain(&resp.Diagnostics, "The product's policy could not be read", err)
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}
