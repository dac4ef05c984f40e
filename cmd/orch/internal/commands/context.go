package commands

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"regexp"

	"github.com/posener/complete"

	"github.com/septemberai/orch/internal/cmdline"
)

const aboutContexts = `A context is a name for a service and for who calls it: an address, a product, and
where the keys come from. Contexts are kept in orch/contexts.json in the user's
directory of configuration files ($XDG_CONFIG_HOME, else ~/.config).`

func contextList(env *cmdline.Env) *cmdline.Command {
	return &cmdline.Command{
		Name: "context list", Synopsis: "List the contexts", JSON: true,
		About:    "List the contexts; * marks the one in use. No key is printed, only where keys come\nfrom.\n\n" + aboutContexts,
		Examples: []string{"orch context list"},
		Run: func(_ context.Context, c *cmdline.Call) error {
			all, err := readContexts(env)
			if err != nil {
				return err
			}
			t := &cmdline.Table{Empty: "there are no contexts; orch context add makes one"}
			t.Head("IN USE", "NAME", "ADDRESS", "PRODUCT", "PLATFORM KEY", "ADMIN KEY")
			for _, name := range all.names() {
				p, used := all.Contexts[name], ""
				if name == all.Current {
					used = "*"
				}
				t.Row(used, name, p.Address, p.Product, p.PlatformKey, p.AdminKey)
			}
			return c.Show(all, t)
		},
	}
}

func contextUse(env *cmdline.Env) *cmdline.Command {
	return &cmdline.Command{
		Name: "context use", Args: []string{"name"}, Synopsis: "Call the service of a context from now on", JSON: true,
		About: `Use a context in all calls from now on. One call uses another by -context. Where
-address or ` + urlVar + ` is given, the context in use does not count.`,
		Examples: []string{"orch context use production"},
		Predict:  map[string]complete.Predictor{"": predictContexts(env)},
		Run: func(_ context.Context, c *cmdline.Call) error {
			name := c.Args[0]
			var p *profile
			err := changeContexts(env, func(all *contexts) (err error) {
				all.Current = name
				p, err = all.named(name)
				return err
			})
			if err != nil {
				return err
			}
			sayWhatCounts(c, p)
			t := &cmdline.Table{}
			t.Row("In use", name)
			return c.Show(map[string]string{"current": name}, t)
		},
	}
}

// sayWhatCounts warns of variables of the environment that take the place of what the
// context in use says.
func sayWhatCounts(c *cmdline.Call, p *profile) {
	if c.Env.Getenv(urlVar) != "" {
		c.Say("%s is set, and wins over this context: unset it, or give -context to a command.", urlVar)
		return
	}
	for _, name := range []string{platformVar, adminVar} {
		if p.namesNoKey() && c.Env.Getenv(name) != "" {
			c.Say("This context names no key: that of %s is sent to %s.", name, p.Address)
		}
	}
}

func contextRemove(env *cmdline.Env) *cmdline.Command {
	return &cmdline.Command{
		Name: "context remove", Args: []string{"name"}, Synopsis: "Remove a context", JSON: true,
		About: `Remove a context. Of its keys nothing is removed. If it was in use, no context is in
use. orch asks first, unless -yes is given.`,
		Examples: []string{"orch context remove staging", "orch context remove -yes staging"},
		Predict:  map[string]complete.Predictor{"": predictContexts(env)},
		Prepare: func(c *cmdline.Call) error {
			all, err := readContexts(env)
			if err == nil {
				_, err = all.named(c.Args[0])
			}
			return err
		},
		Ask: func(args []string) string { return "Remove the context " + args[0] + "?" },
		Run: func(_ context.Context, c *cmdline.Call) error {
			name := c.Args[0]
			var used bool
			err := changeContexts(env, func(all *contexts) error {
				if _, err := all.named(name); err != nil {
					return err
				}
				delete(all.Contexts, name)
				if used = all.Current == name; used {
					all.Current = ""
				}
				return nil
			})
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Removed", name)
			if used {
				t.Row("In use", "none; orch context use names one")
			}
			return c.Show(map[string]string{"removed": name}, t)
		},
	}
}

// keyFlags say where a key comes from.
type keyFlags struct{ name, env, file string }

func (k *keyFlags) register(f *flag.FlagSet, usually string) {
	f.StringVar(&k.env, k.name+"-env", "", "the environment `variable` that holds the "+usually)
	f.StringVar(&k.file, k.name+"-file", "", "a `file` that holds it")
}

// variable is the name of an environment variable. A key of the service is none.
var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// source is checked as far as it can be: what is given may be the key itself by mistake,
// so it is not repeated, and has to be there to be kept.
func (k *keyFlags) source(env *cmdline.Env) (source, error) {
	switch {
	case k.env != "" && k.file != "":
		return source{}, cmdline.Wrong("give either -%s-env or -%[1]s-file", k.name)
	case k.env != "" && !variable.MatchString(k.env):
		return source{}, cmdline.Wrong("-%s-env wants the name of an environment variable, not a key", k.name)
	case k.env != "" && env.Getenv(k.env) == "":
		return source{}, cmdline.Wrong("-%s-env: no environment variable of this name is set", k.name)
	case k.file != "":
		if info, err := os.Stat(k.file); err != nil || info.IsDir() {
			return source{}, cmdline.Wrong("-%s-file: there is no such file", k.name)
		}
		path, err := filepath.Abs(k.file)
		return source{File: path}, err
	}
	return source{Env: k.env}, nil
}

func contextAdd(env *cmdline.Env) *cmdline.Command {
	p := &profile{}
	platform, admin := keyFlags{name: "platform-key"}, keyFlags{name: "admin-key"}
	var replace bool
	return &cmdline.Command{
		Name: "context add", Args: []string{"name"}, Synopsis: "Add a context", JSON: true,
		About: `Add a context. The first one is used at once. Keys are read when a command needs
them, from an environment variable or a file: they are never given on the command
line, and the context does not hold them.

` + aboutContexts,
		Examples: []string{
			"orch context add -address http://127.0.0.1:8000 dev",
			"orch context add -address https://orch.example.com -product acme -platform-key-file ~/.keys/acme production",
			"orch context add -address https://orch.example.com -admin-key-env ORCH_PRODUCTION_ADMIN_KEY production-admin",
		},
		Predict: map[string]complete.Predictor{"platform-key-file": complete.PredictFiles("*"), "admin-key-file": complete.PredictFiles("*")},
		Flags: func(f *flag.FlagSet) {
			f.StringVar(&p.Address, "address", defaultURL, "the `URL` of the service")
			f.StringVar(&p.Product, "product", "", "the `product`, by slug or id, that the admin's commands mean when none is named")
			platform.register(f, "platform key (without any key: "+platformVar+")")
			admin.register(f, "admin key (without any key: "+adminVar+")")
			f.BoolVar(&replace, "replace", false, "replace the context of this name if there is one")
		},
		Run: func(_ context.Context, c *cmdline.Call) (err error) {
			name := c.Args[0]
			if err := checkAddress(p.Address); err != nil {
				return err
			}
			if p.PlatformKey, err = platform.source(env); err != nil {
				return err
			}
			if p.AdminKey, err = admin.source(env); err != nil {
				return err
			}
			var used bool
			err = changeContexts(env, func(all *contexts) error {
				if all.Contexts[name] != nil && !replace {
					return cmdline.Wrong("there is a context %q already; -replace replaces it", name)
				}
				all.Contexts[name] = p
				if all.Current == "" {
					all.Current = name
				}
				used = all.Current == name
				return nil
			})
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Added", name)
			t.Row("Address", p.Address)
			t.Fact("Product", p.Product)
			t.Fact("Platform key", p.PlatformKey)
			t.Fact("Admin key", p.AdminKey)
			if !used {
				t.Row("In use", "no; orch context use "+name)
			}
			return c.Show(p, t)
		},
	}
}
