package provider

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/septemberai/orch/client"
)

// statusData is the data source orch_status.
type statusData struct{ connected }

var _ datasource.DataSourceWithConfigure = (*statusData)(nil)

type statusModel struct {
	AllProducts    types.Bool       `tfsdk:"all_products"`
	Total          types.Int64      `tfsdk:"total"`
	ByStatus       map[string]int64 `tfsdk:"by_status"`
	Health         types.String     `tfsdk:"health"`
	UnhealthyCount types.Int64      `tfsdk:"unhealthy_count"`
	Registry       types.String     `tfsdk:"registry"`
}

// Metadata names the data source.
func (d *statusData) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_status"
}

// Configure takes the connection.
func (d *statusData) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.connect(req.ProviderData, &resp.Diagnostics)
}

// Schema describes the data source.
func (d *statusData) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "How many engines there are, and how they are: of the product, or of all products.",
		Attributes: map[string]schema.Attribute{
			"all_products":    schema.BoolAttribute{Optional: true, Computed: true, MarkdownDescription: "Whether the engines of all products are counted, which needs the provider's `admin_key`. Default: `true` if the provider has no `platform_key`."},
			"total":           schema.Int64Attribute{Computed: true, MarkdownDescription: "How many engines there are, in any state."},
			"by_status":       schema.MapAttribute{Computed: true, ElementType: types.Int64Type, MarkdownDescription: "How many engines are in each of the six states."},
			"health":          schema.StringAttribute{Computed: true, MarkdownDescription: "`ok`, `degraded` (some engines failed) or `critical` (more than a fifth failed)."},
			"unhealthy_count": schema.Int64Attribute{Computed: true, MarkdownDescription: "How many engines failed, or run and fail their check."},
			"registry":        schema.StringAttribute{Computed: true, MarkdownDescription: "`ok`, or `recovering` while the service rebuilds its registry."},
		},
	}
}

// Read reads the counts.
func (d *statusData) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var all types.Bool
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("all_products"), &all)...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	whole := all.ValueBool() || all.IsNull() && !d.asProduct()
	now, err := d.status(ctx, whole)
	if err != nil {
		explain(&resp.Diagnostics, "The status could not be read", err)
		return
	}
	m := statusModel{
		AllProducts: types.BoolValue(whole), Total: types.Int64Value(int64(now.Total)), ByStatus: map[string]int64{}, Health: types.StringValue(now.Health),
		UnhealthyCount: types.Int64Value(int64(now.UnhealthyCount)), Registry: types.StringValue(now.Registry),
	}
	for status, n := range now.ByStatus {
		m.ByStatus[status] = int64(n)
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

func (d *statusData) status(ctx context.Context, whole bool) (*client.FleetStatus, error) {
	if whole {
		c, err := d.adminIfNoProduct()
		if err != nil {
			return nil, err
		}
		return c.Whole(ctx)
	}
	c, err := d.platform()
	if err != nil {
		return nil, err
	}
	return c.Status(ctx)
}
