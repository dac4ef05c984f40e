package provider

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/septemberai/orch/client"
)

// engineResource is the resource orch_engine.
type engineResource struct{ connected }

var (
	_ resource.ResourceWithConfigure      = (*engineResource)(nil)
	_ resource.ResourceWithImportState    = (*engineResource)(nil)
	_ resource.ResourceWithModifyPlan     = (*engineResource)(nil)
	_ resource.ResourceWithValidateConfig = (*engineResource)(nil)
)

// engineModel is an engine in the configuration, the plan and the state.
type engineModel struct {
	ID          types.String   `tfsdk:"id"`
	UserID      types.String   `tfsdk:"user_id"`
	Version     types.String   `tfsdk:"engine_version"`
	Protection  types.Bool     `tfsdk:"deletion_protection"`
	ImageDigest types.String   `tfsdk:"image_digest"`
	URL         types.String   `tfsdk:"url"`
	Status      types.String   `tfsdk:"status"`
	Reason      types.String   `tfsdk:"reason"`
	CreatedAt   types.String   `tfsdk:"created_at"`
	Timeouts    timeouts.Value `tfsdk:"timeouts"`
}

const (
	// changeTimeout is longer than the service's longest change of an engine, with its
	// default settings, and leaves time for retries.
	changeTimeout = 10 * time.Minute
	readTimeout   = 5 * time.Minute

	// shortWait is how long a call waits for the end of a destroy; a longer one is followed
	// by reads. Proxies close a connection on which nothing happens for a minute.
	shortWait = 20 * time.Second
)

// Metadata names the resource.
func (r *engineResource) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_engine"
}

// Configure takes the connection.
func (r *engineResource) Configure(_ context.Context, req resource.ConfigureRequest, resp *resource.ConfigureResponse) {
	r.connect(req.ProviderData, &resp.Diagnostics)
}

// of takes what the service says about the engine. Its key is not among it.
func (m *engineModel) of(e *client.Engine) {
	m.ID, m.Version = types.StringValue(e.EngineID), types.StringValue(e.EngineVersion)
	m.ImageDigest, m.URL, m.Status, m.Reason = textOf(e.ImageDigest), textOf(e.URL), types.StringValue(e.Status), textOf(e.Reason)
	m.CreatedAt = timeOf(e.CreatedAt)
}

// Create provisions the engine, and waits until it is usable.
func (r *engineResource) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var m engineModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	limit, d := m.Timeouts.Create(ctx, changeTimeout)
	resp.Diagnostics.Append(d...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	user := m.UserID.ValueString()
	what := fmt.Sprintf("The engine of %q could not be created", user)
	c, err := r.platform()
	if err != nil {
		explain(&resp.Diagnostics, what, err)
		return
	}
	made, err := provision(ctx, c, user, m.Version.ValueString())
	switch {
	case errors.Is(err, client.ErrEngineAlreadyExists):
		explain(&resp.Diagnostics, what, err,
			fmt.Sprintf("If this configuration should manage the engine that exists, import it: terraform import ADDRESS '%s'", user))
		return
	case made == nil:
		explain(&resp.Diagnostics, what, err)
		return
	}
	m.of(made)
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
	if err != nil {
		explain(&resp.Diagnostics, fmt.Sprintf("The engine of %q is not usable", user), err,
			fmt.Sprintf("The engine exists (%s, status %s) with its volume, and Terraform has marked it as tainted. When the cause is removed, start it (orch engine start '%s') and let Terraform keep it: terraform untaint ADDRESS. "+
				"A tainted engine would be replaced, which destroys its volume; deletion_protection prevents that.", made.EngineID, made.Status, user))
	}
}

// provision creates an engine, and waits until it is usable. If the engine exists afterwards,
// it is returned, with an error if it is not usable. The call itself does not wait, so that
// the engine's id is known, and gets into the state, even if the apply is interrupted.
func provision(ctx context.Context, c *client.Client, user, version string) (*client.Engine, error) {
	// One key for all attempts: they create one engine, however often a connection breaks.
	key := client.IdempotencyKey("terraform-" + rand.Text())
	made, err := notBusy(ctx, func() (*client.Engine, error) {
		return c.Provision(client.RespondAsync(ctx, 0), user, version, key)
	})
	var begun *client.UnderWay
	switch {
	case errors.As(err, &begun):
		return awaitBoot(ctx, c, user, begun.Engine)
	case errors.Is(err, client.ErrEngineBootFailed), errors.Is(err, client.ErrBootTimeout):
		// The engine stays as failed (docs/api.md), unless somebody has destroyed it since.
		if failed, rerr := c.Engine(ctx, user); rerr == nil {
			return failed, err
		}
		return nil, err
	case err != nil:
		return nil, err
	}
	// The response of a provision lacks some of the fields.
	now, rerr := c.Engine(ctx, user)
	if rerr != nil {
		return made, fmt.Errorf("the engine was created, but cannot be read: %w", rerr)
	}
	return now, nil
}

// awaitBoot waits until the provision that has begun is finished.
func awaitBoot(ctx context.Context, c *client.Client, user string, begun *client.Engine) (*client.Engine, error) {
	last, pause := begun, 100*time.Millisecond
	for {
		now, err := c.Engine(ctx, user)
		switch {
		case errors.Is(err, client.ErrEngineNotFound), err == nil && now.EngineID != begun.EngineID:
			return nil, whyGone(ctx, c, user, begun.EngineID)
		case err != nil && !passes(err):
			return last, err
		}
		if err == nil {
			last = now
		}
		if err == nil && now.Operation == nil {
			if o := now.LastOperation; now.Status == client.Failed && o != nil && o.Outcome != "ok" {
				return now, &client.Error{Code: client.Code(o.Outcome), Message: o.Message}
			}
			return now, nil
		}
		if err := wait(ctx, pause); err != nil {
			return last, fmt.Errorf("the engine was still booting: %w", err)
		}
		pause = min(2*pause, time.Second)
	}
}

// passes reports whether an error says nothing about the engine: the service, or what it
// needs, is away for a while, or it was not reached.
func passes(err error) bool {
	var e *client.Error
	return !errors.As(err, &e) || e.Status == http.StatusServiceUnavailable || e.Status == http.StatusTooManyRequests
}

// Read brings the state into agreement with the service. An engine with another id is another
// engine, and not the one in the state, even if it has the same user.
func (r *engineResource) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var m engineModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	limit, d := m.Timeouts.Read(ctx, readTimeout)
	resp.Diagnostics.Append(d...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	user := m.UserID.ValueString()
	c, err := r.platform()
	if errors.Is(err, errNotKnownYet) {
		notRefreshed(&resp.Diagnostics, "engine of "+user)
		return
	}
	var now *client.Engine
	if err == nil {
		now, err = c.Engine(ctx, user)
	}
	switch {
	case errors.Is(err, client.ErrEngineNotFound), err == nil && now.Status == client.Destroying:
		resp.State.RemoveResource(ctx)
	case err != nil:
		explain(&resp.Diagnostics, fmt.Sprintf("The engine of %q could not be read", user), err)
	case known(m.ID) && now.EngineID != m.ID.ValueString():
		resp.Diagnostics.AddWarning(fmt.Sprintf("The engine of %q is another one now", user),
			fmt.Sprintf("Engine %s in the state does not exist any more. Somebody has created engine %s for the same user. To manage that one, import it; it cannot be created a second time.", m.ID.ValueString(), now.EngineID))
		resp.State.RemoveResource(ctx)
	default:
		m.of(now)
		resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
	}
}

// Update stores arguments that only Terraform knows. Whatever concerns the service replaces
// the engine.
func (r *engineResource) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var m engineModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

// Delete destroys the engine of the state, and no other of the same user. The plan has
// checked deletion_protection already, except for a tainted engine.
func (r *engineResource) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var m engineModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	limit, d := m.Timeouts.Delete(ctx, changeTimeout)
	resp.Diagnostics.Append(d...)
	if !resp.Diagnostics.HasError() {
		m.checkProtection(&resp.Diagnostics)
	}
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := r.platform()
	if err == nil {
		err = destroy(ctx, c, m.UserID.ValueString(), m.ID.ValueString())
	}
	if err != nil {
		explain(&resp.Diagnostics, fmt.Sprintf("The engine of %q could not be destroyed", m.UserID.ValueString()), err)
	}
}

// destroy destroys a user's engine if it has this id, and waits until it is gone.
func destroy(ctx context.Context, c *client.Client, user, id string) error {
	is := func() (bool, error) {
		now, err := c.Engine(ctx, user)
		if errors.Is(err, client.ErrEngineNotFound) {
			return false, nil
		}
		return err == nil && now.EngineID == id, err
	}
	if there, err := is(); err != nil || !there {
		return err
	}
	key := client.IdempotencyKey("terraform-" + rand.Text())
	_, err := notBusy(ctx, func() (*client.Engine, error) {
		return c.Destroy(client.RespondAsync(ctx, shortWait), user, key)
	})
	if errors.Is(err, client.ErrEngineNotFound) {
		return nil
	}
	var begun *client.UnderWay
	if !errors.As(err, &begun) {
		return err
	}
	for {
		if there, err := is(); err != nil || !there {
			return err
		}
		if err := wait(ctx, time.Second); err != nil {
			return fmt.Errorf("the engine was still being destroyed: %w", err)
		}
	}
}

// ImportState takes an engine by its user_id. It is protected until the configuration says
// otherwise.
func (r *engineResource) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	resp.Diagnostics.Append(resp.State.SetAttribute(ctx, path.Root("user_id"), req.ID)...)
	resp.Diagnostics.Append(resp.State.SetAttribute(ctx, path.Root("deletion_protection"), true)...)
}
