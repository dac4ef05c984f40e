package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/septemberai/orch/client"
)

// product is the resource orch_product.
type product struct{ connected }

var (
	_ resource.ResourceWithConfigure      = (*product)(nil)
	_ resource.ResourceWithImportState    = (*product)(nil)
	_ resource.ResourceWithModifyPlan     = (*product)(nil)
	_ resource.ResourceWithValidateConfig = (*product)(nil)
)

// productModel is a product in the configuration, the plan and the state.
type productModel struct {
	ID          types.String `tfsdk:"id"`
	Slug        types.String `tfsdk:"slug"`
	DisplayName types.String `tfsdk:"display_name"`
	Policy      types.Object `tfsdk:"policy"`
	CreatedAt   types.String `tfsdk:"created_at"`

	Rotation   types.String `tfsdk:"platform_key_rotation"`
	Overlap    types.Int64  `tfsdk:"platform_key_overlap_seconds"`
	InState    types.Bool   `tfsdk:"platform_key_in_state"`
	Generation types.Int64  `tfsdk:"platform_key_generation"`
	Key        types.String `tfsdk:"platform_key"`

	Timeouts timeouts.Value `tfsdk:"timeouts"`
}

const (
	productTimeout = 5 * time.Minute
	defaultOverlap = 3600 // an hour, in which the new key reaches those who use it
)

// Metadata names the resource.
func (p *product) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_product"
}

// Configure takes the connection.
func (p *product) Configure(_ context.Context, req resource.ConfigureRequest, resp *resource.ConfigureResponse) {
	p.connect(req.ProviderData, &resp.Diagnostics)
}

// Create registers the product.
func (p *product) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var m productModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	limit, d := m.Timeouts.Create(ctx, productTimeout)
	resp.Diagnostics.Append(d...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	what := fmt.Sprintf("The product %q could not be created", m.Slug.ValueString())
	c, err := p.admin()
	if err != nil {
		explain(&resp.Diagnostics, what, err)
		return
	}
	policy, err := policyOf(m.Policy)
	if err != nil {
		explain(&resp.Diagnostics, what, err)
		return
	}
	made, err := c.RegisterProduct(ctx, m.Slug.ValueString(), m.DisplayName.ValueString(), &policy)
	switch {
	case errors.Is(err, client.ErrProductSlugExists):
		explain(&resp.Diagnostics, what, err,
			fmt.Sprintf("Choose another slug. Or, if this configuration should manage the product that exists, import it: terraform import ADDRESS %s", m.Slug.ValueString()),
			"An earlier apply that lost its connection may have created it: then nobody has its platform key. After the import, set platform_key_rotation to make a new one.")
		return
	case err != nil:
		explain(&resp.Diagnostics, what, err)
		return
	}
	m.ID, m.Slug = types.StringValue(made.ProductID), types.StringValue(made.Slug)
	m.CreatedAt = types.StringNull()
	p.keep(&m, 1, made.PlatformAPIKey)
	// The product exists and its key is known only here, so the state is written whether or
	// not the next call succeeds.
	if read, err := c.Product(ctx, made.ProductID); err != nil {
		resp.Diagnostics.AddWarning("The time of creation is not known yet", explanation(err))
	} else {
		m.CreatedAt = timeOf(read.CreatedAt)
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

// keep writes a new key into the state, if it should be there, and leaves it to the ephemeral
// resource of this run.
func (p *product) keep(m *productModel, generation int64, key string) {
	m.Generation, m.Key = types.Int64Value(generation), types.StringNull()
	if m.InState.ValueBool() {
		m.Key = types.StringValue(key)
	}
	p.fresh.put(m.ID.ValueString(), generation, key)
}

// Read brings the state into agreement with the service. Only the service's own response that
// there is no such product counts as gone.
func (p *product) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var m productModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	limit, d := m.Timeouts.Read(ctx, productTimeout)
	resp.Diagnostics.Append(d...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := p.admin()
	if errors.Is(err, errNotKnownYet) {
		notRefreshed(&resp.Diagnostics, "product "+m.Slug.ValueString())
		return
	}
	var now *client.Product
	if err == nil {
		now, err = c.Product(ctx, m.ID.ValueString())
	}
	switch {
	case errors.Is(err, client.ErrProductNotFound):
		resp.State.RemoveResource(ctx)
		return
	case err != nil:
		explain(&resp.Diagnostics, fmt.Sprintf("The product %q could not be read", m.Slug.ValueString()), err)
		return
	}
	m.Slug, m.DisplayName, m.CreatedAt = types.StringValue(now.Slug), types.StringValue(now.DisplayName), timeOf(now.CreatedAt)
	if m.Policy, err = policyObject(now.Policy, m.Policy); err != nil {
		explain(&resp.Diagnostics, "The product's policy could not be read", err)
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

// Update changes the policy, then the key. What has been done is in the state even if the
// next step fails.
func (p *product) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var m, was productModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	resp.Diagnostics.Append(req.State.Get(ctx, &was)...)
	limit, d := m.Timeouts.Update(ctx, productTimeout)
	resp.Diagnostics.Append(d...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := p.admin()
	if err != nil {
		explain(&resp.Diagnostics, "The product could not be changed", err)
		return
	}
	if m.CreatedAt.IsUnknown() {
		m.CreatedAt = was.CreatedAt
	}
	if !m.Policy.Equal(was.Policy) {
		if err := changePolicy(ctx, c, &m, &was); err != nil {
			explain(&resp.Diagnostics, fmt.Sprintf("The policy of the product %q could not be changed", m.Slug.ValueString()), err)
			return
		}
	}
	if m.Rotation.Equal(was.Rotation) {
		resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
		return
	}
	done := was
	done.Policy = m.Policy
	resp.Diagnostics.Append(resp.State.Set(ctx, &done)...)
	key, err := c.RotatePlatformKey(ctx, m.ID.ValueString(), time.Duration(m.Overlap.ValueInt64())*time.Second)
	if err != nil {
		explain(&resp.Diagnostics, fmt.Sprintf("The platform key of the product %q could not be rotated", m.Slug.ValueString()), err)
		return
	}
	p.keep(&m, was.Generation.ValueInt64()+1, key)
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

// errPolicyMoved means that the policy is not the one that the plan was made from.
var errPolicyMoved = errors.New("somebody changed the policy after the plan was made, and this plan would undo that unseen; plan again")

// changePolicy replaces the policy that the plan was made from, and no other.
func changePolicy(ctx context.Context, c *client.Client, m, was *productModel) error {
	policy, err := policyOf(m.Policy)
	if err != nil {
		return err
	}
	var moved error
	_, err = c.ChangePolicy(ctx, m.ID.ValueString(), func(now client.Policy) client.Policy {
		moved = nil
		seen, err := policyObject(now, was.Policy)
		// A response that was lost may have been that of this very change.
		done, derr := policyObject(now, m.Policy)
		if err = errors.Join(err, derr); err == nil && !seen.Equal(was.Policy) && !done.Equal(m.Policy) {
			err = errPolicyMoved
		}
		if moved = err; err != nil {
			return now
		}
		return policy
	})
	return errors.Join(err, moved)
}

// Delete deletes the product, if it has no engines.
func (p *product) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var m productModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	limit, d := m.Timeouts.Delete(ctx, productTimeout)
	resp.Diagnostics.Append(d...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := p.admin()
	if err == nil {
		err = c.DeleteProduct(ctx, m.ID.ValueString())
	}
	what := fmt.Sprintf("The product %q could not be deleted", m.Slug.ValueString())
	switch {
	case err == nil, errors.Is(err, client.ErrProductNotFound):
	case errors.Is(err, client.ErrProductHasEngines):
		explain(&resp.Diagnostics, what, err, hasEngines(ctx, c, &m),
			fmt.Sprintf("Destroy them first, with the product's platform key: `orch engine list -admin -product %s` lists them, and `orch engine destroy USER_ID` destroys one. "+
				"Or keep the product, and let Terraform forget it: terraform state rm ADDRESS", m.Slug.ValueString()))
	default:
		explain(&resp.Diagnostics, what, err)
	}
}

// hasEngines says how many engines a product has, if that can be read.
func hasEngines(ctx context.Context, c *client.Client, m *productModel) string {
	const why = "Each of them holds a user's memory, so none is destroyed together with the product."
	now, err := c.Product(ctx, m.ID.ValueString())
	switch {
	case err != nil || now.Engines == 0:
		return "The product still has engines that this plan does not destroy. " + why
	case now.Engines == 1:
		return "The product still has one engine that this plan does not destroy. It holds a user's memory, so it is not destroyed together with the product."
	}
	return fmt.Sprintf("The product still has %d engines that this plan does not destroy. %s", now.Engines, why)
}

// ImportState takes a product by its id or its slug. The state is what a configuration
// without the optional arguments describes, so that the next plan is empty.
func (p *product) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	c, err := p.admin()
	if err != nil {
		explain(&resp.Diagnostics, "The product could not be imported", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, productTimeout)
	defer cancel()
	found, err := findProduct(ctx, c, req.ID)
	if err != nil {
		explain(&resp.Diagnostics, "The product could not be imported", err)
		return
	}
	for name, value := range map[string]any{
		"id": found.ProductID, "slug": found.Slug,
		"platform_key_overlap_seconds": defaultOverlap, "platform_key_in_state": false, "platform_key_generation": 0,
	} {
		resp.Diagnostics.Append(resp.State.SetAttribute(ctx, path.Root(name), value)...)
	}
}

// findProduct reads a product by its id or its slug.
func findProduct(ctx context.Context, c *client.Client, idOrSlug string) (*client.Product, error) {
	list, err := c.Products(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range list.Products {
		if p.ProductID == idOrSlug || p.Slug == idOrSlug {
			return &p, nil
		}
	}
	return nil, fmt.Errorf("no product has the id or the slug %q", idOrSlug)
}
