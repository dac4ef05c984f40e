package remote

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/septemberai/orch/client"
)

// findProduct reads a product by its id or its slug.
func findProduct(ctx context.Context, c *client.Client, name string) (*client.Product, error) {
	p, err := c.Product(ctx, name)
	if !errors.Is(err, client.ErrProductNotFound) {
		return p, err
	}
	list, lerr := c.Products(ctx)
	if lerr != nil {
		return nil, lerr
	}
	for _, p := range list.Products {
		if p.Slug == name {
			return &p, nil
		}
	}
	return nil, err
}

func productRegister() *spec {
	var name string
	var policy policyFlags
	return &spec{
		name: "product register", args: []string{"slug"}, needs: needsAdminKey,
		synopsis: "Register a product, and print its platform key",
		about: `Register a product. Its platform key is printed this once and kept nowhere: who
loses it needs a new one (product rotate-key).`,
		examples: []string{
			`orch product register -name "ACME Inc." acme`,
			"orch product register -set max_engines=100 -set rate_limit_rpm=6000 acme",
			"orch product register -policy policy.json acme",
		},
		flags: func(f *flag.FlagSet) {
			f.StringVar(&name, "name", "", "its display `name` (default: the slug)")
			policy.register(f)
		},
		predict: policyPredictors,
		run: func(ctx context.Context, in *invocation) error {
			change, err := policy.change(in.env)
			if err != nil {
				return err
			}
			p := change(client.Policy{})
			if name == "" {
				name = in.args[0]
			}
			made, err := in.client.RegisterProduct(ctx, in.args[0], name, &p)
			if err != nil {
				return err
			}
			t := &table{}
			t.row("Product", made.Slug)
			t.row("Product id", made.ProductID)
			t.row("Platform key", made.PlatformAPIKey)
			return in.show(made, t)
		},
	}
}

func productList() *spec {
	return &spec{
		name: "product list", needs: needsAdminKey,
		synopsis: "List all products",
		about:    "List all products, oldest first.",
		examples: []string{"orch product list", "orch product list -json | jq -r '.products[].slug'"},
		run: func(ctx context.Context, in *invocation) error {
			list, err := in.client.Products(ctx)
			if err != nil {
				return err
			}
			return in.show(list, productTable(list))
		},
	}
}

func productTable(list *client.ProductList) *table {
	t := &table{}
	t.row("SLUG", "PRODUCT ID", "NAME", "ENGINES", "MAX ENGINES", "CREATED")
	for _, p := range list.Products {
		t.row(p.Slug, p.ProductID, p.DisplayName, p.Engines, p.Policy.MaxEngines, p.CreatedAt)
	}
	return t
}

func productShow() *spec {
	return &spec{
		name: "product show", args: []string{"product"}, needs: needsAdminKey,
		synopsis: "Show a product and its policy",
		about:    "Show a product, named by its slug or its id, and its policy.",
		examples: []string{"orch product show acme"},
		run: func(ctx context.Context, in *invocation) error {
			p, err := findProduct(ctx, in.client, in.args[0])
			if err != nil {
				return err
			}
			t := &table{}
			t.row("Product", p.Slug)
			t.row("Product id", p.ProductID)
			t.row("Name", p.DisplayName)
			t.row("Engines", p.Engines)
			t.row("Created", p.CreatedAt)
			t.rows = append(t.rows, describePolicy(p.Policy).rows...)
			return in.show(p, t)
		},
	}
}

func productPolicy() *spec {
	var policy policyFlags
	return &spec{
		name: "product policy", args: []string{"product"}, needs: needsAdminKey,
		synopsis: "Show or change what a product may do",
		about: `Show the policy of a product, named by its slug or its id, or change it: -policy
replaces all of it, -set changes one field. It holds from the next request on.

The fields are ` + strings.Join(policyFields, ", ") + ".",
		examples: []string{
			"orch product policy acme",
			"orch product policy -set max_engines=50 -set 'allowed_images=acme/*,tools/*' acme",
			"orch product policy -set max_engines= acme    # no limit",
			"orch product policy -policy policy.json acme",
		},
		flags:   policy.register,
		predict: policyPredictors,
		run: func(ctx context.Context, in *invocation) error {
			change, err := policy.change(in.env)
			if err != nil {
				return err
			}
			p, err := findProduct(ctx, in.client, in.args[0])
			if err != nil {
				return err
			}
			set := &p.Policy
			if policy.given() {
				if set, err = in.client.ChangePolicy(ctx, p.ProductID, change); err != nil {
					return err
				}
			}
			return in.show(map[string]*client.Policy{"policy": set}, describePolicy(*set))
		},
	}
}

func productRotateKey() *spec {
	const most = 24 * time.Hour
	var overlap time.Duration
	return &spec{
		name: "product rotate-key", args: []string{"product"}, needs: needsAdminKey,
		synopsis: "Give a product a new platform key, and print it",
		about: `Give a product, named by its slug or its id, a new platform key, and print it this
once. The old key works on for the overlap; without one, it and all earlier ones
end at once.`,
		examples: []string{"orch product rotate-key -overlap 1h acme"},
		flags: func(f *flag.FlagSet) {
			f.DurationVar(&overlap, "overlap", 0, "how long the old key works on, up to 24h")
		},
		run: func(ctx context.Context, in *invocation) error {
			if overlap < 0 || overlap > most {
				return wrong("-overlap must be from 0 to %s", most)
			}
			p, err := findProduct(ctx, in.client, in.args[0])
			if err != nil {
				return err
			}
			key, err := in.client.RotatePlatformKey(ctx, p.ProductID, overlap)
			if err != nil {
				return err
			}
			t := &table{}
			t.row("Product", p.Slug)
			t.row("Platform key", key)
			return in.show(map[string]string{"platform_api_key": key}, t)
		},
	}
}

func productDelete() *spec {
	return &spec{
		name: "product delete", args: []string{"product"}, needs: needsAdminKey,
		synopsis: "Remove a product that has no engines",
		about:    "Remove a product, named by its slug or its id, with its keys. One that has engines\nis refused. It is asked for first, or -yes says so.",
		examples: []string{"orch product delete acme", "orch product delete -yes acme"},
		ask:      func(args []string) string { return fmt.Sprintf("Delete the product %s, with its keys?", args[0]) },
		run: func(ctx context.Context, in *invocation) error {
			p, err := findProduct(ctx, in.client, in.args[0])
			if err != nil {
				return err
			}
			if err := in.client.DeleteProduct(ctx, p.ProductID); err != nil {
				return err
			}
			t := &table{}
			t.row("Product", p.Slug)
			t.row("Status", "deleted")
			return in.show(map[string]string{"status": "deleted"}, t)
		},
	}
}
