package link

import (
	"net/http"
	"strings"
)

// Consul waits with its answer to a request that names an index (blocking queries).
var Consul = Kind{
	Name: "consul", longConns: consulLong,
	Long: func(r *http.Request) bool { return r.URL.Query().Has("index") },
}

// Vault answers everything at once.
var Vault = Kind{Name: "vault"}

// Nomad is the Nomad whose agent is at a host. It hands some requests on to a node,
// which may be away, and its client asks nodes directly, too.
func Nomad(host string) Kind {
	return Kind{
		Name: "nomad", longConns: nomadLong,
		Long: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/stream") },
		elsewhere: func(r *http.Request) bool {
			return r.URL.Host != host || strings.HasPrefix(r.URL.Path, "/v1/client/") ||
				r.Method != http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/volume/host/")
		},
	}
}
