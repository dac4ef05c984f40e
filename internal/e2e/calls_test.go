package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/internal/contract"
)

// operation is one endpoint of the document with a call that it takes.
type operation struct {
	id, method, path string
	body             string // empty: it takes none
	key              string // the header that it authenticates by; empty: none
}

const (
	platform = "X-Platform-Key"
	admin    = "X-Admin-Key"
)

// operations are all of them; {user} and {product} stand for ids.
var operations = []operation{
	{"provision", "POST", "/engines/provision", `{"user_id": "{user}"}`, platform},
	{"getEngine", "GET", "/engines/{user}", "", platform},
	{"admit", "POST", "/engines/{user}/admit", "{}", platform},
	{"startEngine", "POST", "/engines/{user}/start", "{}", platform},
	{"stopEngine", "POST", "/engines/{user}/stop", "{}", platform},
	{"rotateKey", "POST", "/engines/{user}/rotate-key", "{}", platform},
	{"keepAwake", "POST", "/engines/{user}/keep-awake", `{"seconds": 60}`, platform},
	{"destroyEngine", "DELETE", "/engines/{user}", "{}", platform},
	{"listEngines", "GET", "/engines", "", platform},
	{"getStatus", "GET", "/status", "", platform},
	{"getMetrics", "GET", "/metrics", "", platform},
	{"listAudit", "GET", "/audit", "", platform},
	{"registerProduct", "POST", "/products/register", `{"slug": "new", "display_name": "New"}`, admin},
	{"listProducts", "GET", "/products", "", admin},
	{"getProduct", "GET", "/products/{product}", "", admin},
	{"setPolicy", "PUT", "/products/{product}/policy", `{"policy": {}}`, admin},
	{"rotatePlatformKey", "POST", "/products/{product}/rotate-platform-key", "{}", admin},
	{"deleteProduct", "DELETE", "/products/{product}", "{}", admin},
	{"planReconcile", "GET", "/reconcile", "", admin},
	{"requestReconcile", "POST", "/reconcile", "{}", admin},
	{"listUnreachableVolumes", "GET", "/unreachable-volumes", "", admin},
	{"forgetVolume", "DELETE", "/unreachable-volumes/" + noProduct, "{}", admin},
	{"getRegistry", "GET", "/registry", "", admin},
	{"planRecovery", "GET", "/registry/recover", "", admin},
	{"recoverRegistry", "POST", "/registry/recover", "{}", admin},
	{"rekey", "POST", "/registry/rekey", "{}", admin},
	{"adoptNode", "POST", "/nodes/no-such-node/adopt", "{}", admin},
	{"listQuarantine", "GET", "/quarantine", "", admin},
	{"adopt", "POST", "/quarantine/" + noProduct + "/adopt", "{}", admin},
	{"discard", "DELETE", "/quarantine/" + noProduct, "{}", admin},
	{"providerKeys", "GET", "/provider-keys", "", admin},
	{"applyProviderKeys", "POST", "/provider-keys/apply", "{}", admin},
	{"getHealth", "GET", "/health", "", ""},
	{"getLive", "GET", "/live", "", ""},
	{"getReady", "GET", "/ready", "", ""},
	{"getDocument", "GET", "/openapi.yaml", "", ""},
	{"getDocs", "GET", "/docs", "", ""},
}

// noProduct has the form of a product_id and is none.
const noProduct = "abcdefghijklmnopqrstuvwxyz"

// of is the operation about a user and a product.
func (o operation) of(user, product string) operation {
	o.path = strings.NewReplacer("{user}", url.PathEscape(user), "{product}", product).Replace(o.path)
	text, _ := json.Marshal(user)
	o.body = strings.ReplaceAll(o.body, "{user}", strings.Trim(string(text), `"`))
	return o
}

// reply is an answer as it came.
type reply struct {
	status        int
	code, message string
	header        http.Header
	text          string
}

// send makes a call exactly as it is given, which the client would not: key is
// what the operation's header holds, more are headers as name, value, ...
func (r *replica) send(t *testing.T, o operation, key string, more ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), o.method, r.url+o.path, strings.NewReader(o.body))
	if err != nil {
		t.Fatal(err)
	}
	if o.key != "" && key != "" {
		req.Header.Set(o.key, key)
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
	return reply{resp.StatusCode, body.Error.Code, body.Error.Message, resp.Header, string(b)}
}

// want fails unless a reply is this error.
func (got reply) want(t *testing.T, o operation, status int, code string) {
	t.Helper()
	if got.status != status || got.code != code {
		t.Errorf("%s %s: got %d %s, want %d %s", o.method, o.path, got.status, got.text, status, code)
	}
	if (status == 503 || status == 429) && got.header.Get("Retry-After") == "" {
		t.Errorf("%s %s: %d without Retry-After", o.method, o.path, status)
	}
}

func TestOperationsAreThoseOfTheDocument(t *testing.T) {
	doc, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	var documented, here []string
	for _, a := range contract.Answers(doc) {
		documented = append(documented, a.Operation)
	}
	for _, o := range operations {
		here = append(here, o.id)
		u, err := url.Parse("http://host" + o.of("u", noProduct).path)
		if err != nil {
			t.Fatal(err)
		}
		if found, _ := contract.Find(doc, o.method, u); found == nil || found.OperationID != o.id {
			t.Errorf("%s %s is not %s", o.method, o.path, o.id)
		}
	}
	slices.Sort(here)
	if documented = slices.Compact(documented); !slices.Equal(here, documented) {
		t.Errorf("tested are %v, documented %v", here, documented)
	}
	for _, why := range notDriven {
		for _, a := range why.answers {
			if !slices.Contains(contract.Answers(doc), a) {
				t.Errorf("%s is excused and not documented", a)
			}
		}
	}
}

// Every operation refuses strangers, what it does not know, and too much, and
// every one about somebody says so when there is nobody.
func TestEveryOperationRefuses(t *testing.T) {
	t.Parallel()
	const prefix = "refuses/"
	r := startService(t, shared, map[string]string{"ORCH_VOLUME_POOL": "0", "ORCH_CONSUL_PREFIX": prefix, "ORCH_RECONCILE_INTERVAL_S": "3600"})
	c, s := r.product(t, nil), openStores(t, shared)
	keys := map[string]string{platform: c.PlatformKey, admin: adminKey}
	for _, o := range operations {
		o := o.of("nobody", noProduct)
		if o.key == "" {
			if got := r.send(t, o, ""); got.status != 200 {
				t.Errorf("%s answers %d %s", o.path, got.status, got.text)
			}
			continue
		}
		key := keys[o.key]
		stranger := map[string]string{platform: "INVALID_PLATFORM_KEY", admin: "INVALID_ADMIN_KEY"}[o.key]
		r.send(t, o, "").want(t, o, 401, stranger)
		r.send(t, o, "pk-sept-"+strings.Repeat("A", 43)).want(t, o, 401, stranger)
		bad := o
		bad.path += "?typo=1"
		if got := r.send(t, bad, key); got.status != 400 || !strings.Contains(got.message, "typo") {
			t.Errorf("%s %s: got %d %s", o.method, bad.path, got.status, got.text)
		}
		if o.body != "" {
			bad = o
			bad.body = `{"typo": 1}`
			if got := r.send(t, bad, key); got.status != 400 || !strings.Contains(got.message, "typo") {
				t.Errorf("%s %s: got %d %s", o.method, bad.path, got.status, got.text)
			}
			bad.body = strings.Repeat(" ", 64<<10+1)
			r.send(t, bad, key).want(t, bad, 413, "REQUEST_TOO_LARGE")
			r.send(t, o, key, "Content-Type", "text/plain").want(t, o, 415, "UNSUPPORTED_MEDIA_TYPE")
		}
		switch {
		case strings.Contains(o.path, noProduct):
			missing := "PRODUCT_NOT_FOUND"
			switch o.id {
			case "forgetVolume":
				missing = "VOLUME_NOT_FOUND"
			case "adopt", "discard":
				missing = "QUARANTINE_NOT_FOUND"
			}
			r.send(t, o, key).want(t, o, 404, missing)
			// No other path of the registry can be reached by an id.
			strange := o
			for _, id := range []string{"..%2Fslugs%2F" + noProduct, "%00", "%2F", "x", "..", strings.Repeat("a", 5000)} {
				strange.path = strings.Replace(o.path, noProduct, id, 1)
				r.send(t, strange, key).want(t, strange, 404, missing)
			}
		case strings.Contains(o.path, "/nobody") && o.id != "admit":
			r.send(t, o, key).want(t, o, 404, "ENGINE_NOT_FOUND")
		}
	}
	// Of what nothing is known, nobody can say whose it is.
	if _, err := s.consul.KV().Put(&consul.KVPair{Key: prefix + "quarantine/" + noProduct, Value: []byte(`{"engine_id": "` + noProduct + `"}`)}, nil); err != nil {
		t.Fatal(err)
	}
	wantCode(t, second(r.admin().Adopt(t.Context(), noProduct, "", "")), 404, "PRODUCT_NOT_FOUND")
	// These two are open to both.
	for _, path := range []string{"/status", "/audit"} {
		o := operation{method: "GET", path: path, key: admin}
		r.send(t, o, "nonsense").want(t, o, 401, "INVALID_ADMIN_KEY")
	}
}
