package commands

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

const (
	urlVar      = "ORCH_URL"
	platformVar = "ORCH_PLATFORM_KEY"
	adminVar    = "ORCH_ADMIN_KEY"
	caVar       = "ORCH_CACERT"
	certVar     = "ORCH_CLIENT_CERT"
	certKeyVar  = "ORCH_CLIENT_KEY"
	defaultURL  = "http://127.0.0.1:8000"
)

// need is which key a command needs.
type need int

const (
	needsPlatformKey need = iota
	needsAdminKey
	needsEither
)

func (n need) help() string {
	switch n {
	case needsPlatformKey:
		return "It needs the product's platform key (" + platformVar + ", or a context's)."
	case needsAdminKey:
		return "It needs the admin key (" + adminVar + ", or a context's)."
	}
	return "It needs the product's platform key (" + platformVar + ", or the context's), or else the\nadmin key (" + adminVar + ")."
}

// choice is the service that the flags name.
type choice struct{ address, context string }

// target is a service to call: its address, and the sources of its keys.
type target struct {
	address         string
	product         string // of admin commands that name none; may be empty
	platform, admin source
	tls             client.TLS
}

// choose finds the service to call. A named context takes precedence over the environment,
// and the environment over the selected context. A key is only sent to the service that it
// is for: an address from -address or the environment never gets the keys of the selected
// context, and a context that names one key never takes the other one from the environment.
// The same holds for the files for TLS.
func choose(env *cmdline.Env, c choice) (*target, error) {
	ofEnviron := [2]source{{Env: platformVar}, {Env: adminVar}}
	t := &target{address: cmp.Or(c.address, env.Getenv(urlVar)), platform: ofEnviron[0], admin: ofEnviron[1]}
	tlsOfEnviron := client.TLS{CACert: env.Getenv(caVar), ClientCert: env.Getenv(certVar), ClientKey: env.Getenv(certKeyVar)}
	t.tls = tlsOfEnviron
	if c.context != "" || t.address == "" {
		all, err := readContexts(env)
		if err != nil {
			return nil, err
		}
		if name := cmp.Or(c.context, all.Current); name != "" {
			known, err := all.named(name)
			if err != nil {
				return nil, err
			}
			t = &target{cmp.Or(c.address, known.Address), known.Product, known.PlatformKey, known.AdminKey, known.TLS}
			if known.TLS == (client.TLS{}) {
				t.tls = tlsOfEnviron
			}
			if known.namesNoKey() {
				t.platform, t.admin = ofEnviron[0], ofEnviron[1]
			}
		}
	}
	t.address = cmp.Or(t.address, defaultURL)
	return t, checkAddress(t.address)
}

// checkAddress returns an error if an address is not the URL of a service. The error does
// not contain the address, which may contain a password.
func checkAddress(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return cmdline.Wrong("the address (-address, %s) is not a URL, such as %s", urlVar, defaultURL)
	}
	if u.User != nil {
		return cmdline.Wrong("the address (-address, %s) must not contain a user or a password", urlVar)
	}
	return nil
}

// client returns a client of the service with only the keys that the command needs.
func (t *target) client(env *cmdline.Env, n need) (_ *client.Client, err error) {
	c := &client.Client{BaseURL: t.address, HTTP: &http.Client{}}
	if t.tls != (client.TLS{}) {
		if c.HTTP, err = t.tls.HTTPClient(); err != nil {
			return nil, cmdline.Wrong("%s, %s, %s, or the context's files for TLS: %v", caVar, certVar, certKeyVar, err)
		}
	}
	if n != needsAdminKey {
		if c.PlatformKey, err = t.platform.read(env); err != nil {
			return nil, err
		}
	}
	if n == needsAdminKey || n == needsEither {
		if c.AdminKey, err = t.admin.read(env); err != nil {
			return nil, err
		}
	}
	switch {
	case n == needsPlatformKey && t.platform == (source{}):
		return nil, cmdline.Wrong("the context names no platform key; add one with orch context add -replace")
	case n == needsAdminKey && t.admin == (source{}):
		return nil, cmdline.Wrong("the context names no admin key; add one with orch context add -replace")
	case n == needsPlatformKey && c.PlatformKey == "":
		return nil, cmdline.Wrong("%s is not set; set it to the product's platform key", t.platform.Env)
	case n == needsAdminKey && c.AdminKey == "":
		return nil, cmdline.Wrong("%s is not set; set it to the admin key", t.admin.Env)
	case n == needsEither && c.PlatformKey == "" && c.AdminKey == "":
		var unset []string
		for _, s := range []source{t.platform, t.admin} {
			if s.Env != "" {
				unset = append(unset, s.Env)
			}
		}
		if len(unset) == 1 {
			return nil, cmdline.Wrong("%s is not set", unset[0])
		}
		return nil, cmdline.Wrong("neither %s is set", strings.Join(unset, " nor "))
	}
	return c, nil
}

// source is the source of a key: an environment variable or a file.
type source struct {
	Env  string `json:"env,omitempty"`
	File string `json:"file,omitempty"`
}

// String names the source, but never the key.
func (s source) String() string {
	switch {
	case s.File != "":
		return "file " + s.File
	case s.Env != "":
		return "$" + s.Env
	}
	return ""
}

// maxKey limits how much of a key file is read, in bytes.
const maxKey = 64 << 10

// read returns the key; "" if its variable is not set.
func (s source) read(env *cmdline.Env) (string, error) {
	if s.File == "" {
		return env.Getenv(s.Env), nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		return "", cmdline.Wrong("cannot read the key: %v", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return "", fmt.Errorf("cannot read the key: %w", err)
	}
	key := strings.TrimSpace(string(b))
	if key == "" {
		return "", cmdline.Wrong("the key file %s is empty", s.File)
	}
	return key, nil
}
