package link

import (
	"fmt"
	"net/http"
	"strings"
)

// nomadFS begins the paths of Nomad's calls for the files and logs of allocations.
const nomadFS = "/v1/client/fs/"

// nomadNeeds returns the right that a request to Nomad needs (the ACL checks of the
// endpoints in Nomad's nomad package).
func nomadNeeds(r *http.Request) string {
	path, reads := strings.TrimPrefix(r.URL.Path, "/v1"), r.Method == http.MethodGet
	namespace := r.URL.Query().Get("namespace")
	if namespace == "" {
		namespace = "default"
	}
	in := func(capability string) string { return fmt.Sprintf("namespace %q: %s", namespace, capability) }
	below := func(prefix string) bool { return strings.HasPrefix(path, prefix) }
	switch {
	case path == "/jobs" && reads:
		return in("list-jobs")
	case path == "/jobs":
		return in("submit-job") + `; host_volume "engine-*": write`
	case path == "/jobs/parse", below("/job/") && !reads && !strings.HasSuffix(path, "/evaluate"):
		return in("submit-job")
	case below("/job"), below("/allocation"), below("/evaluation"), below("/deployment"):
		return in("read-job")
	case below(strings.TrimPrefix(nomadFS, "/v1")):
		return in("read-logs")
	case below("/client/allocation/"):
		return in("alloc-lifecycle")
	case below("/event/stream"):
		return in("read-job") + "; node: read"
	case below("/volume") && reads:
		return in("host-volume-read")
	case below("/volume/host/register"):
		return in("host-volume-register")
	case below("/volume/host/create"):
		return in("host-volume-create")
	case below("/volume/host/"):
		return in("host-volume-delete")
	case below("/var"):
		verb := map[string]string{http.MethodGet: "read", http.MethodDelete: "destroy"}[r.Method]
		if below("/vars") {
			verb = "list"
		} else if verb == "" {
			verb = "write"
		}
		return in(fmt.Sprintf("variables path %q: %s", endpoint(strings.TrimPrefix(path, "/var/")), verb))
	case below("/node") && !reads:
		return "node: write"
	case below("/node"), path == "/agent/members":
		return "node: read"
	case below("/agent"):
		return "agent: read"
	}
	return ""
}

// consulNeeds returns the right that a request to Consul needs.
func consulNeeds(r *http.Request) string {
	switch path := strings.TrimPrefix(r.URL.Path, "/v1"); {
	case strings.HasPrefix(path, "/kv/") && r.Method == http.MethodGet:
		return "key: read"
	case strings.HasPrefix(path, "/kv/"):
		return "key: write"
	case path == "/txn":
		return "key: write"
	case strings.HasPrefix(path, "/session/"):
		return "session: write"
	case strings.HasPrefix(path, "/health/"), strings.HasPrefix(path, "/catalog/"):
		return "service: read; node: read"
	case strings.HasPrefix(path, "/agent/health/service/"):
		return "service: read"
	case strings.HasPrefix(path, "/coordinate/node/"):
		return "node: read"
	}
	return ""
}

// vaultNeeds returns the capability that a request to Vault needs on its path.
func vaultNeeds(r *http.Request) string {
	verb := map[string]string{http.MethodGet: "read", http.MethodDelete: "delete", "LIST": "list"}[r.Method]
	switch {
	case r.URL.Query().Get("list") == "true":
		verb = "list"
	case verb == "":
		verb = "create, update"
	}
	return fmt.Sprintf("path %q: %s", endpoint(strings.TrimPrefix(r.URL.Path, "/v1/")), verb)
}
