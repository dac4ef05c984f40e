package link

import (
	"net/http"
	"strings"
)

// Consul delays its response to a request with an index (blocking query).
var Consul = Kind{
	Name: "consul", longConns: consulLong, needs: consulNeeds,
	Long: func(r *http.Request) bool { return r.URL.Query().Has("index") },
}

// Vault responds to all requests without delay.
var Vault = Kind{Name: "vault", needs: vaultNeeds}

// Nomad returns the Kind of a Nomad agent at a host. Nomad forwards some requests to a node
// that may be unreachable, and its client also calls nodes directly.
func Nomad(host string) Kind {
	return Kind{
		Name: "nomad", longConns: nomadLong, needs: nomadNeeds,
		Long: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/stream") },
		elsewhere: func(r *http.Request) bool {
			return r.URL.Host != host || strings.HasPrefix(r.URL.Path, "/v1/client/") ||
				r.Method != http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/volume/host/")
		},
	}
}
