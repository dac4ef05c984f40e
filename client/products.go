package client

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// Policy contains a product's limits and settings. An absent field means no limit or the
// service's default; a limit of 0 allows nothing.
type Policy struct {
	MaxEngines    *int     `json:"max_engines,omitempty"`
	RateLimitRPM  *int     `json:"rate_limit_rpm,omitempty"` // admits per minute
	EngineImage   string   `json:"engine_image,omitempty"`
	IdleTimeoutS  *int     `json:"idle_timeout_s,omitempty"`
	CPUMHz        *int     `json:"cpu_mhz,omitempty"`
	MemoryMB      *int     `json:"memory_mb,omitempty"`
	BrainMB       *int     `json:"brain_mb,omitempty"`       // quota of an engine's volume, in MiB
	AllowedImages []string `json:"allowed_images,omitempty"` // globs
	WarmPool      *int     `json:"warm_pool,omitempty"`
	NodePool      string   `json:"node_pool,omitempty"`
	SleepMode     string   `json:"sleep_mode,omitempty"` // stop or pause
	Isolation     string   `json:"isolation,omitempty"`  // runc, gvisor or kata
	// KeyProofPath is a path of the product's engines that requires the key.
	KeyProofPath      string `json:"key_proof_path,omitempty"`
	SnapshotIntervalS *int   `json:"snapshot_interval_s,omitempty"` // at least 300, or 0: no snapshots without a call
	SnapshotKeep      *int   `json:"snapshot_keep,omitempty"`       // snapshots of an engine that are kept
	OnNodeLost        string `json:"on_node_lost,omitempty"`        // "wait" (default) or "restore"
	NodeLostAfterS    *int   `json:"node_lost_after_s,omitempty"`   // at least 60
}

// Registered is a new product. Its key is returned only this once.
type Registered struct {
	ProductID      string `json:"product_id"`
	Slug           string `json:"slug"`
	PlatformAPIKey string `json:"platform_api_key"`
}

// Product is a product as an admin sees it.
type Product struct {
	ProductID   string    `json:"product_id"`
	Slug        string    `json:"slug"`
	DisplayName string    `json:"display_name"`
	Policy      Policy    `json:"policy"`
	CreatedAt   time.Time `json:"created_at"`
	Engines     int       `json:"engines"` // in any state
}

// ProductList is all products, oldest first.
type ProductList struct {
	Products   []Product `json:"products"`
	Total      int       `json:"total"`
	Unreadable []string  `json:"unreadable"` // ids of products whose record cannot be read
}

// RegisterProduct registers a product. A nil policy has no limits.
func (c *Client) RegisterProduct(ctx context.Context, slug, displayName string, policy *Policy) (*Registered, error) {
	p := new(Registered)
	return p, c.do(ctx, call{method: http.MethodPost, path: "/products/register", keys: admin, out: p, in: struct {
		Slug        string  `json:"slug"`
		DisplayName string  `json:"display_name"`
		Policy      *Policy `json:"policy,omitempty"`
	}{slug, displayName, policy}})
}

// Products lists all products.
func (c *Client) Products(ctx context.Context) (*ProductList, error) {
	list := new(ProductList)
	return list, c.get(ctx, admin, "/products", list)
}

// Product reads one product.
func (c *Client) Product(ctx context.Context, productID string) (*Product, error) {
	p, _, err := c.taggedProduct(ctx, productID)
	return p, err
}

// taggedProduct reads one product, with the ETag of its policy.
func (c *Client) taggedProduct(ctx context.Context, productID string) (p *Product, tag string, err error) {
	p = new(Product)
	err = c.do(ctx, call{
		method: http.MethodGet, path: productPath(productID), keys: admin, out: p, repeatable: true,
		answered: func(h http.Header) { tag = h.Get("ETag") },
	})
	return p, tag, err
}

// SetPolicy replaces a product's policy without a check for concurrent changes. It is
// effective from the next request on.
func (c *Client) SetPolicy(ctx context.Context, productID string, policy Policy) (*Policy, error) {
	return c.setPolicy(ctx, productID, policy, nil)
}

// ChangePolicy replaces a product's policy with the result of change. If the policy is
// changed concurrently, it is read and changed again, up to ten times; then the error is
// [ErrPolicyChanged].
func (c *Client) ChangePolicy(ctx context.Context, productID string, change func(Policy) Policy) (policy *Policy, err error) {
	for range 10 {
		p, tag, rerr := c.taggedProduct(ctx, productID)
		if rerr != nil {
			return nil, rerr
		}
		policy, err = c.setPolicy(ctx, productID, change(p.Policy), http.Header{"If-Match": {tag}})
		if !errors.Is(err, ErrPolicyChanged) {
			break
		}
	}
	return policy, err
}

func (c *Client) setPolicy(ctx context.Context, productID string, policy Policy, header http.Header) (*Policy, error) {
	type body struct {
		Policy Policy `json:"policy"`
	}
	answer := new(body)
	err := c.do(ctx, call{
		method: http.MethodPut, path: productPath(productID) + "/policy", keys: admin, in: body{policy}, out: answer, repeatable: true, header: header,
	})
	return &answer.Policy, err
}

// RotatePlatformKey replaces a product's platform key, and returns the new one. The old key
// stays valid for the overlap, at most a day. Without an overlap, the old key and all
// earlier ones become invalid at once. Fractions of a second are rounded up.
func (c *Client) RotatePlatformKey(ctx context.Context, productID string, overlap time.Duration) (string, error) {
	var answer struct {
		PlatformAPIKey string `json:"platform_api_key"`
	}
	err := c.do(ctx, call{
		method: http.MethodPost, path: productPath(productID) + "/rotate-platform-key", keys: admin, out: &answer,
		in: struct {
			OverlapSeconds int `json:"overlap_seconds"`
		}{wholeSeconds(overlap)},
	})
	return answer.PlatformAPIKey, err
}

// DeleteProduct removes a product that has no engines.
func (c *Client) DeleteProduct(ctx context.Context, productID string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: productPath(productID), keys: admin})
}
