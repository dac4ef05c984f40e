package harness

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// Operation is an endpoint in the document, with a valid call.
type Operation struct {
	ID, Method, Path string
	Body             string // empty: no body
	Key              string // the authentication header; empty: none
}

const (
	// PlatformHeader authenticates a product.
	PlatformHeader = "X-Platform-Key"
	// AdminHeader authenticates the admin.
	AdminHeader = "X-Admin-Key"
)

// Operations are all operations. {user} and {product} stand for ids.
var Operations = []Operation{
	{"provision", "POST", "/engines/provision", `{"user_id": "{user}"}`, PlatformHeader},
	{"getEngine", "GET", "/engines/{user}", "", PlatformHeader},
	{"admit", "POST", "/engines/{user}/admit", "{}", PlatformHeader},
	{"startEngine", "POST", "/engines/{user}/start", "{}", PlatformHeader},
	{"stopEngine", "POST", "/engines/{user}/stop", "{}", PlatformHeader},
	{"rotateKey", "POST", "/engines/{user}/rotate-key", "{}", PlatformHeader},
	{"keepAwake", "POST", "/engines/{user}/keep-awake", `{"seconds": 60}`, PlatformHeader},
	{"takeSnapshot", "POST", "/engines/{user}/snapshots", "{}", PlatformHeader},
	{"listSnapshots", "GET", "/engines/{user}/snapshots", "", PlatformHeader},
	{"deleteSnapshot", "DELETE", "/engines/{user}/snapshots/no-such-snapshot", "{}", PlatformHeader},
	{"restoreEngine", "POST", "/engines/{user}/restore", "{}", PlatformHeader},
	{"forkEngine", "POST", "/engines/{user}/fork", `{"user_id": "fork"}`, PlatformHeader},
	{"destroyEngine", "DELETE", "/engines/{user}", "{}", PlatformHeader},
	{"listEngines", "GET", "/engines", "", PlatformHeader},
	{"getStatus", "GET", "/status", "", PlatformHeader},
	{"getMetrics", "GET", "/metrics", "", PlatformHeader},
	{"listAudit", "GET", "/audit", "", PlatformHeader},
	{"registerProduct", "POST", "/products/register", `{"slug": "new", "display_name": "New"}`, AdminHeader},
	{"listProducts", "GET", "/products", "", AdminHeader},
	{"getProduct", "GET", "/products/{product}", "", AdminHeader},
	{"setPolicy", "PUT", "/products/{product}/policy", `{"policy": {}}`, AdminHeader},
	{"rotatePlatformKey", "POST", "/products/{product}/rotate-platform-key", "{}", AdminHeader},
	{"deleteProduct", "DELETE", "/products/{product}", "{}", AdminHeader},
	{"planReconcile", "GET", "/reconcile", "", AdminHeader},
	{"requestReconcile", "POST", "/reconcile", "{}", AdminHeader},
	{"listUnreachableVolumes", "GET", "/unreachable-volumes", "", AdminHeader},
	{"forgetVolume", "DELETE", "/unreachable-volumes/" + NoProduct, "{}", AdminHeader},
	{"getRegistry", "GET", "/registry", "", AdminHeader},
	{"planRecovery", "GET", "/registry/recover", "", AdminHeader},
	{"recoverRegistry", "POST", "/registry/recover", "{}", AdminHeader},
	{"rekey", "POST", "/registry/rekey", "{}", AdminHeader},
	{"getEngineByID", "GET", "/engines/by-id/" + NoProduct, "", AdminHeader},
	{"listNodes", "GET", "/nodes", "", AdminHeader},
	{"adoptNode", "POST", "/nodes/no-such-node/adopt", "{}", AdminHeader},
	{"evacuateNode", "POST", "/nodes/no-such-node/evacuate", "{}", AdminHeader},
	{"getEvacuation", "GET", "/nodes/no-such-node/evacuate", "", AdminHeader},
	{"cancelEvacuation", "DELETE", "/nodes/no-such-node/evacuate", "{}", AdminHeader},
	{"listStoredEngines", "GET", "/stored-engines", "", AdminHeader},
	{"importEngine", "POST", "/stored-engines/" + NoProduct + "/import", "{}", AdminHeader},
	{"listQuarantine", "GET", "/quarantine", "", AdminHeader},
	{"adopt", "POST", "/quarantine/" + NoProduct + "/adopt", "{}", AdminHeader},
	{"discard", "DELETE", "/quarantine/" + NoProduct, "{}", AdminHeader},
	{"providerKeys", "GET", "/provider-keys", "", AdminHeader},
	{"applyProviderKeys", "POST", "/provider-keys/apply", "{}", AdminHeader},
	{"getHealth", "GET", "/health", "", ""},
	{"getLive", "GET", "/live", "", ""},
	{"getReady", "GET", "/ready", "", ""},
	{"getDocument", "GET", "/openapi.yaml", "", ""},
	{"getDocs", "GET", "/docs", "", ""},
}

// NoProduct has the form of a product_id, but no product has it.
const NoProduct = "abcdefghijklmnopqrstuvwxyz"

// Of returns the operation for a user and a product.
func (o Operation) Of(user, product string) Operation {
	o.Path = strings.NewReplacer("{user}", url.PathEscape(user), "{product}", product).Replace(o.Path)
	text, _ := json.Marshal(user)
	o.Body = strings.ReplaceAll(o.Body, "{user}", strings.Trim(string(text), `"`))
	return o
}

// Reply is a response as received.
type Reply struct {
	Status        int
	Code, Message string
	Header        http.Header
	Text          string
}

// Send makes a call exactly as specified, even if the client would not. key is the value of
// the operation's authentication header; more are headers as name, value, ...
func (r *Replica) Send(t *testing.T, o Operation, key string, more ...string) Reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), o.Method, r.URL+o.Path, strings.NewReader(o.Body))
	if err != nil {
		t.Fatal(err)
	}
	if o.Key != "" && key != "" {
		req.Header.Set(o.Key, key)
	}
	for i := 0; i < len(more); i += 2 {
		req.Header.Set(more[i], more[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var body struct {
		Error struct{ Code, Message string }
	}
	_ = json.Unmarshal(b, &body)
	return Reply{resp.StatusCode, body.Error.Code, body.Error.Message, resp.Header, string(b)}
}

// Want fails unless a response is this error.
func (got Reply) Want(t *testing.T, o Operation, status int, code string) {
	t.Helper()
	if got.Status != status || got.Code != code {
		t.Errorf("%s %s: got %d %s, want %d %s", o.Method, o.Path, got.Status, got.Text, status, code)
	}
	if (status == 503 || status == 429) && got.Header.Get("Retry-After") == "" {
		t.Errorf("%s %s: %d without Retry-After", o.Method, o.Path, status)
	}
}
