package commands

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
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

// thisProduct reads the product that the argument names, or the context's product if there
// is no argument.
func (in *invocation) thisProduct(ctx context.Context) (*client.Product, error) {
	name := in.target.product
	if len(in.Args) > 0 {
		name = in.Args[0]
	}
	if name == "" {
		return nil, cmdline.Wrong("name the product: by its slug, its id, or in the context (orch context add -product)")
	}
	return findProduct(ctx, in.client, name)
}

// productID is the form of a product's id.
var productID = regexp.MustCompile(`^[a-z2-7]{26,}$`)

// namedProduct returns the id of the product that -product names, or "" without -product. A
// deleted product can only be named by its id. Any other name that the service does not
// know is an error, because it would give an empty list.
func (in *invocation) namedProduct(ctx context.Context) (string, error) {
	if in.product == "" {
		return "", nil
	}
	p, err := findProduct(ctx, in.client, in.product)
	if errors.Is(err, client.ErrProductNotFound) && productID.MatchString(in.product) {
		return in.product, nil
	}
	if err != nil {
		return "", err
	}
	return p.ProductID, nil
}

// ofProduct returns the items of a list that belong to the product that -product names, or
// all items without -product.
func ofProduct[T any](ctx context.Context, in *invocation, list []T, productOf func(T) string) ([]T, error) {
	of, err := in.namedProduct(ctx)
	if err != nil || of == "" {
		return list, err
	}
	return slices.DeleteFunc(list, func(one T) bool { return productOf(one) != of }), nil
}

// showKey prints a result with a new platform key. In text output the last line sets the
// key in a shell.
func (in *invocation) showKey(result any, t *cmdline.Table, key string) error {
	if err := in.Show(result, t); err != nil || in.JSON {
		return err
	}
	_, err := fmt.Fprintf(in.Env.Out, "\nexport %s=%s\n", platformVar, quote(cmdline.Clean(key)))
	return err
}

func productRegister() *spec {
	var name string
	var policy policyFlags
	return &spec{
		name: "product register", args: []string{"slug"}, needs: needsAdminKey,
		synopsis: "Register a product, and print its platform key",
		about: `Register a product, and print its platform key as a line for a shell. The key is
printed only this once and stored nowhere: if it is lost, create a new one with
"orch product rotate-key".`,
		examples: []string{
			`orch product register -name "ACME Inc." acme`,
			"orch product register -set max_engines=100 -set rate_limit_rpm=6000 acme",
			"orch product register -policy policy.json acme",
			`eval "$(orch product register acme | tail -n 1)"    # sets ORCH_PLATFORM_KEY`,
		},
		flags: func(f *flag.FlagSet) {
			f.StringVar(&name, "name", "", "the display `name` (default: the slug)")
			policy.register(f)
		},
		predict: policyPredictors,
		run: func(ctx context.Context, in *invocation) error {
			change, err := policy.change(in.Env)
			if err != nil {
				return err
			}
			p := change(client.Policy{})
			if name == "" {
				name = in.Args[0]
			}
			made, err := in.client.RegisterProduct(ctx, in.Args[0], name, &p)
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Product", made.Slug)
			t.Row("Product id", made.ProductID)
			return in.showKey(made, t, made.PlatformAPIKey)
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
			return in.Show(list, productTable(list))
		},
	}
}

func productTable(list *client.ProductList) *cmdline.Table {
	t := &cmdline.Table{Empty: "no products; orch product register creates one"}
	t.Head("SLUG", "PRODUCT ID", "NAME", "ENGINES", "MAX ENGINES", "CREATED")
	for _, p := range list.Products {
		t.Row(p.Slug, p.ProductID, p.DisplayName, p.Engines, p.Policy.MaxEngines, p.CreatedAt)
	}
	return t
}

func productShow() *spec {
	return &spec{
		name: "product show", args: []string{"[product]"}, needs: needsAdminKey,
		synopsis: "Show a product and its policy",
		about:    "Show a product, named by its slug or its id (default: the context's), and its\npolicy.",
		examples: []string{"orch product show acme"},
		run: func(ctx context.Context, in *invocation) error {
			p, err := in.thisProduct(ctx)
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Product", p.Slug)
			t.Row("Product id", p.ProductID)
			t.Row("Name", p.DisplayName)
			t.Row("Engines", p.Engines)
			t.Row("Created", p.CreatedAt)
			t.Append(describePolicy(p.Policy))
			return in.Show(p, t)
		},
	}
}

func productPolicy() *spec {
	var policy policyFlags
	return &spec{
		name: "product policy", args: []string{"[product]"}, needs: needsAdminKey,
		synopsis: "Show or change what a product may do",
		about: `Show the policy of a product, named by its slug or its id (default: the context's),
or change it: -policy replaces all of it, -set changes one field and keeps the
others. A change is effective from the next request on. -set loses no concurrent
change: the policy is written only if it has not changed since it was read
(If-Match); otherwise it is read and changed again.

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
			change, err := policy.change(in.Env)
			if err != nil {
				return err
			}
			p, err := in.thisProduct(ctx)
			if err != nil {
				return err
			}
			set := &p.Policy
			if policy.given() {
				if set, err = in.client.ChangePolicy(ctx, p.ProductID, change); err != nil {
					return err
				}
			}
			return in.Show(map[string]*client.Policy{"policy": set}, describePolicy(*set))
		},
	}
}

func productRotateKey() *spec {
	const most = 24 * time.Hour
	var overlap time.Duration
	return &spec{
		name: "product rotate-key", args: []string{"product"}, needs: needsAdminKey,
		synopsis: "Replace a product's platform key, and print the new key",
		about: `Replace the platform key of a product, named by its slug or its id, and print the
new key, only this once, as a line for a shell. The old key stays valid for the
overlap; without one, the old key and all earlier ones become invalid at once.`,
		examples: []string{"orch product rotate-key -overlap 1h acme"},
		flags: func(f *flag.FlagSet) {
			f.DurationVar(&overlap, "overlap", 0, "how long the old key stays valid, up to 24h")
		},
		run: func(ctx context.Context, in *invocation) error {
			if overlap < 0 || overlap > most {
				return cmdline.Wrong("-overlap must be from 0 to %s", most)
			}
			p, err := findProduct(ctx, in.client, in.Args[0])
			if err != nil {
				return err
			}
			key, err := in.client.RotatePlatformKey(ctx, p.ProductID, overlap)
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Product", p.Slug)
			return in.showKey(map[string]string{"platform_api_key": key}, t, key)
		},
	}
}

func productDelete() *spec {
	return &spec{
		name: "product delete", args: []string{"product"}, needs: needsAdminKey,
		synopsis: "Delete a product that has no engines",
		about:    "Delete a product, named by its slug or its id, with its keys. It must not have\nengines. orch asks for confirmation, unless -yes is given.",
		examples: []string{"orch product delete acme", "orch product delete -yes acme"},
		ask:      func(args []string) string { return fmt.Sprintf("Delete the product %s with its keys?", args[0]) },
		run: func(ctx context.Context, in *invocation) error {
			p, err := findProduct(ctx, in.client, in.Args[0])
			if err != nil {
				return err
			}
			if err := in.client.DeleteProduct(ctx, p.ProductID); err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Product", p.Slug)
			t.Row("Status", "deleted")
			return in.Show(map[string]string{"status": "deleted"}, t)
		},
	}
}
