package commands

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"regexp"

	"github.com/posener/complete"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

const aboutContexts = `A context names a service to call: its address, a product, and the sources of the
keys. Contexts are stored in orch/contexts.json in the user's configuration
directory ($XDG_CONFIG_HOME, or ~/.config).`

func contextList(env *cmdline.Env) *cmdline.Command {
	return &cmdline.Command{
		Name: "context list", Synopsis: "List the contexts", JSON: true,
		About:    "List the contexts; * marks the one in use. It prints the sources of\nkeys, but no keys.\n\n" + aboutContexts,
		Examples: []string{"orch context list"},
		Run: func(_ context.Context, c *cmdline.Call) error {
			all, err := readContexts(env)
			if err != nil {
				return err
			}
			t := &cmdline.Table{Empty: "there are no contexts; orch context add creates one"}
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
		Name: "context use", Args: []string{"name"}, Synopsis: "Select the context that commands use", JSON: true,
		About: `Select the context that all commands use from now on. To use another one for a
single command, give -context. With -address or ` + urlVar + ` the selected context is
not used.`,
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

// sayWhatCounts warns about environment variables that override the context in use.
func sayWhatCounts(c *cmdline.Call, p *profile) {
	if c.Env.Getenv(urlVar) != "" {
		c.Say("%s is set and overrides this context: unset it, or pass -context to a command.", urlVar)
		return
	}
	for _, name := range []string{platformVar, adminVar} {
		if p.namesNoKey() && c.Env.Getenv(name) != "" {
			c.Say("This context has no key: the key in %s is sent to %s.", name, p.Address)
		}
	}
}

func contextRemove(env *cmdline.Env) *cmdline.Command {
	return &cmdline.Command{
		Name: "context remove", Args: []string{"name"}, Synopsis: "Remove a context", JSON: true,
		About: `Remove a context. The keys that it refers to stay as they are. If it was in use, no context
is in use afterwards. orch asks for confirmation, unless -yes is given.`,
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
				t.Row("In use", "none; select one with orch context use")
			}
			return c.Show(map[string]string{"removed": name}, t)
		},
	}
}

// keyFlags are the flags that name the source of a key.
type keyFlags struct{ name, env, file string }

func (k *keyFlags) register(f *flag.FlagSet, usually string) {
	f.StringVar(&k.env, k.name+"-env", "", "the environment `variable` that contains the "+usually)
	f.StringVar(&k.file, k.name+"-file", "", "a `file` that contains the key")
}

// variable matches the name of an environment variable. No key of the service matches it.
var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// source validates the flags. Their values may be the key itself by mistake, so they are
// not repeated in errors, and the variable or file must exist.
func (k *keyFlags) source(env *cmdline.Env) (source, error) {
	switch {
	case k.env != "" && k.file != "":
		return source{}, cmdline.Wrong("give either -%s-env or -%[1]s-file", k.name)
	case k.env != "" && !variable.MatchString(k.env):
		return source{}, cmdline.Wrong("-%s-env must be the name of an environment variable, not a key", k.name)
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

// checkTLS makes the paths absolute, and returns an error if a file cannot be used.
func checkTLS(files *client.TLS) error {
	for _, path := range []*string{&files.CACert, &files.ClientCert, &files.ClientKey} {
		if *path != "" {
			abs, err := filepath.Abs(*path)
			if err != nil {
				return err
			}
			*path = abs
		}
	}
	if _, err := files.HTTPClient(); err != nil {
		return cmdline.Wrong("-ca-cert-file, -client-cert-file, -client-key-file: %v", err)
	}
	return nil
}

func contextAdd(env *cmdline.Env) *cmdline.Command {
	p := &profile{}
	platform, admin := keyFlags{name: "platform-key"}, keyFlags{name: "admin-key"}
	var replace bool
	return &cmdline.Command{
		Name: "context add", Args: []string{"name"}, Synopsis: "Add a context", JSON: true,
		About: `Add a context. The first one is selected at once. The context does not contain
keys: commands read them from an environment variable or a file. Keys are never
given on the command line.

` + aboutContexts,
		Examples: []string{
			"orch context add -address http://127.0.0.1:8000 dev",
			"orch context add -address https://orch.example.com -product acme -platform-key-file ~/.keys/acme production",
			"orch context add -address https://orch.example.com -ca-cert-file ~/.orch/ca.pem -client-cert-file ~/.orch/me.pem -client-key-file ~/.orch/me-key.pem locked",
			"orch context add -address https://orch.example.com -admin-key-env ORCH_PRODUCTION_ADMIN_KEY production-admin",
		},
		Predict: map[string]complete.Predictor{"platform-key-file": complete.PredictFiles("*"), "admin-key-file": complete.PredictFiles("*"), "ca-cert-file": complete.PredictFiles("*"), "client-cert-file": complete.PredictFiles("*"), "client-key-file": complete.PredictFiles("*")},
		Flags: func(f *flag.FlagSet) {
			f.StringVar(&p.Address, "address", defaultURL, "the `URL` of the service")
			f.StringVar(&p.Product, "product", "", "the `product`, by slug or id, of admin commands that name none")
			platform.register(f, "platform key (without any key: "+platformVar+")")
			admin.register(f, "admin key (without any key: "+adminVar+")")
			f.StringVar(&p.TLS.CACert, "ca-cert-file", "", "a `file` with the authorities of the service's certificate, in PEM format (without any file for TLS: "+caVar+")")
			f.StringVar(&p.TLS.ClientCert, "client-cert-file", "", "a `file` with a client certificate, in PEM format (without any file for TLS: "+certVar+")")
			f.StringVar(&p.TLS.ClientKey, "client-key-file", "", "a `file` with its key (without any file for TLS: "+certKeyVar+")")
			f.BoolVar(&replace, "replace", false, "replace the context of this name, if it exists")
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
			if err := checkTLS(&p.TLS); err != nil {
				return err
			}
			var used bool
			err = changeContexts(env, func(all *contexts) error {
				if all.Contexts[name] != nil && !replace {
					return cmdline.Wrong("context %q exists already; use -replace to replace it", name)
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
			t.Fact("Authorities", p.TLS.CACert)
			t.Fact("Client certificate", p.TLS.ClientCert)
			if !used {
				t.Row("In use", "no; orch context use "+name)
			}
			return c.Show(p, t)
		},
	}
}
