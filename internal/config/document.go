package config

import (
	"cmp"
	"fmt"
	"strings"
)

//go:generate go run ./document ../../docs/configuration.md

// Document is docs/configuration.md: every variable in a table.
func Document() string {
	var b strings.Builder
	b.WriteString(`# Configuration

<!-- Made by "make docs" from internal/config/config.go: change it there. -->

` + "`orch server`" + ` is configured by its environment. All mistakes are reported at once, by the name of the variable, with exit code 2; secrets are never printed. ` + "`orch server --help`" + ` prints the same list.
`)
	for _, v := range Variables() {
		if v.Section != "" {
			fmt.Fprintf(&b, "\n## %s\n| Variable | Kind | Default | Meaning |\n|---|---|---|---|\n", v.Section)
		}
		def := "none"
		if v.Default != "" {
			def = "`" + v.Default + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", v.Name, cmp.Or(v.Kind, "text"), def, strings.ReplaceAll(v.Description, "|", "\\|"))
	}
	b.WriteString(`
## The way to Nomad, Consul, Vault and PostgreSQL
Their clients read their own standard variables, TLS included:

| Variable | Default | Meaning |
|---|---|---|
| ` + "`NOMAD_ADDR`, `NOMAD_TOKEN`, `NOMAD_CACERT`, `NOMAD_CLIENT_CERT`, `NOMAD_CLIENT_KEY`" + ` | ` + "`http://127.0.0.1:4646`" + ` | Nomad; the token has the policy in [deploy/nomad](../deploy/nomad/orch.policy.hcl) |
| ` + "`CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_SSL`, `CONSUL_CACERT`, `CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY`" + ` | ` + "`127.0.0.1:8500`" + ` | Consul; [deploy/consul](../deploy/consul/orch.policy.hcl) |
| ` + "`VAULT_ADDR`, `VAULT_TOKEN`, `VAULT_CACERT`, `VAULT_CLIENT_CERT`, `VAULT_CLIENT_KEY`" + ` | ` + "`https://127.0.0.1:8200`" + ` | Vault; [deploy/vault](../deploy/vault/orch.policy.hcl); the token is renewed while the service runs |
| ` + "`sslmode`, `sslrootcert` in `ORCH_DATABASE_URL`, or `PGSSLMODE`, `PGSSLROOTCERT`" + ` | | TLS to PostgreSQL |

The variables named in ` + "`ORCH_ENGINE_ENV_PASSTHROUGH`" + ` are read from the service's environment at its start and written to Vault; engines get them from there at their next start. A value that Nomad could not hand to engines as it is (longer than 65535 bytes with its name, quotes and escapes, not UTF-8, with a NUL) stops the start: Nomad would kill every running engine, as soon as it read it.
`)
	return b.String()
}
