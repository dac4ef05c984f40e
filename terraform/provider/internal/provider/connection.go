package provider

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-log/tflog"

	"github.com/septemberai/orch/client"
)

// connection is what one configuration of the provider knows of its service.
type connection struct {
	settings settings
	client   *client.Client // without keys; nil: its address is known only after apply
	fresh    *freshKeys
}

// errNotKnownYet means that an argument of the provider is known only after apply.
var errNotKnownYet = errors.New("an argument of the provider orch (its address, a key or a certificate) depends on a resource that does not exist yet, so the service cannot be asked during this plan")

// admin returns a client with only the admin key.
func (c *connection) admin() (*client.Client, error) {
	return c.with(c.settings.AdminKey, "admin_key", envAdminKey, func(to *client.Client, key string) { to.AdminKey = key })
}

// platform returns a client with only the platform key.
func (c *connection) platform() (*client.Client, error) {
	return c.with(c.settings.PlatformKey, "platform_key", envPlatformKey, func(to *client.Client, key string) { to.PlatformKey = key })
}

func (c *connection) with(key types.String, name, env string, set func(*client.Client, string)) (*client.Client, error) {
	if c.client == nil || key.IsUnknown() {
		return nil, errNotKnownYet
	}
	if !known(key) {
		return nil, fmt.Errorf("the provider has no %s: set this argument of the provider, or the environment variable %s", name, env)
	}
	copied := *c.client
	set(&copied, key.ValueString())
	return &copied, nil
}

// asProduct reports whether calls that both keys allow use the platform key: whenever the
// provider has one.
func (c *connection) asProduct() bool {
	return c.settings.PlatformKey.IsUnknown() || known(c.settings.PlatformKey)
}

// adminIfNoProduct returns a client with the admin key, for a call that a platform key would
// allow, too.
func (c *connection) adminIfNoProduct() (*client.Client, error) {
	admin, err := c.admin()
	if err != nil && !errors.Is(err, errNotKnownYet) && !c.asProduct() {
		err = fmt.Errorf("the provider has neither a platform_key nor an admin_key: set one of these arguments of the provider, or the environment variable %s or %s", envPlatformKey, envAdminKey)
	}
	return admin, err
}

// connected is the part that all resources, data sources and ephemeral resources share.
type connected struct{ *connection }

// connect takes what the provider's Configure passes on. Terraform also configures resources
// before the provider, to validate them, with nothing.
func (c *connected) connect(data any, diags *diag.Diagnostics) {
	if data == nil {
		return
	}
	conn, ok := data.(*connection)
	if !ok {
		diags.AddError("Mistake in the provider", fmt.Sprintf("The provider passed on a %T.", data))
	}
	c.connection = conn
}

// logged logs each call at level DEBUG, without headers and bodies, which contain keys.
type logged struct {
	base  http.RoundTripper
	agent string
}

// RoundTrip makes one call.
func (l *logged) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", l.agent)
	began := time.Now()
	resp, err := l.base.RoundTrip(r)
	fields := map[string]any{"method": r.Method, "path": r.URL.EscapedPath(), "ms": time.Since(began).Milliseconds()}
	if err != nil {
		fields["error"] = err.Error()
	} else {
		fields["status"], fields["request_id"] = resp.StatusCode, resp.Header.Get("X-Request-Id")
	}
	tflog.Debug(r.Context(), "call of orch", fields)
	return resp, err
}

// freshKeys are the platform keys that this process has created, by product and generation.
// The service returns a key only once, and a resource can pass values on only through the
// state. So the resource leaves the key here, and the ephemeral resource orch_platform_key
// of the same apply takes it: Terraform uses one process of the provider for both.
type freshKeys struct {
	mu   sync.Mutex
	keys map[keyOf]string
}

type keyOf struct {
	product    string
	generation int64
}

func (f *freshKeys) put(product string, generation int64, key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys == nil {
		f.keys = map[keyOf]string{}
	}
	f.keys[keyOf{product, generation}] = key
}

func (f *freshKeys) get(product string, generation int64) (key string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key, ok = f.keys[keyOf{product, generation}]
	return key, ok
}

// notBusy makes a change of an engine. While another operation of the engine is in progress,
// it waits as long as the service says, and tries again until the context ends.
func notBusy[T any](ctx context.Context, change func() (T, error)) (T, error) {
	for {
		out, err := change()
		var e *client.Error
		if !errors.Is(err, client.ErrEngineBusy) || !errors.As(err, &e) {
			return out, err
		}
		if wait(ctx, max(e.RetryAfter, time.Second)) != nil {
			return out, err
		}
	}
}

// wait returns the context's error if that ends first.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
