package server_test

import (
	"net/http"
	"testing"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/internal/contract"
)

// testRegistry makes every call about the registry and the quarantine, and checks the
// responses against the document. The recovery of a registry that went back in time is
// tested in internal/e2e.
func testRegistry(t *testing.T, whole *api) {
	doc, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	checked, a := contract.New(doc, whole.http.Transport), *whole
	a.http = &http.Client{Transport: checked}
	defer func() {
		for _, problem := range checked.Take(a.url[len("http://"):]) {
			t.Errorf("not as documented: %s", problem)
		}
	}()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	registry, err := consul.NewClient(&consul.Config{Address: a.consul, Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	ok := func(method, path, body string) answer {
		t.Helper()
		got := a.call(t, method, path, body)
		got.want(t, 200, "")
		return got
	}

	if got := ok("GET", "/registry", ""); got.field("state") != "ok" || got.field("keys") != "ok" || got.field("deployment_id") == "" || got.field("epoch") == "0" {
		t.Errorf("the registry is %s", got.text)
	}
	ok("GET", "/registry/recover", "")
	ok("POST", "/registry/rekey", "")
	for _, path := range []string{"/health", "/status"} {
		if got := ok("GET", path, ""); got.field("registry") != "ok" {
			t.Errorf("%s returns %s", path, got.text)
		}
	}

	// A requested recovery ends, and finds nothing missing.
	ok("POST", "/registry/recover", "{}")
	e := ok("POST", "/engines/provision", `{"user_id": "quarantined"}`) // it waits for the recovery
	last, _ := ok("GET", "/registry", "").body["last_recovery"].(map[string]any)
	if last["why"] != "an admin requested it" || last["rebuilt"] != 0.0 {
		t.Errorf("the last recovery is %v", last)
	}

	id := e.field("engine_id")
	quarantine := func() {
		t.Helper()
		record := `{"engine_id": "` + id + `", "since": "2026-11-24T06:19:48Z", "why": "two rows name it", "what": ["row", "key"]}`
		if _, err := registry.KV().Put(&consul.KVPair{Key: "orch/quarantine/" + id, Value: []byte(record)}, nil); err != nil {
			t.Fatal(err)
		}
		if got := ok("GET", "/quarantine", ""); got.field("total") != "1" {
			t.Fatalf("quarantined are %s", got.text)
		}
	}
	quarantine()
	product := ok("GET", "/products", "").body["products"].([]any)[0].(map[string]any)["product_id"]
	a.call(t, "POST", "/quarantine/"+id+"/adopt", `{"product_id": "p", "user_id": "somebody-else"}`).want(t, 400, "INVALID_REQUEST")
	if got := ok("POST", "/quarantine/"+id+"/adopt", ""); got.field("engine_id") != id || got.body["product_id"] != product || got.field("user_id") != "quarantined" || got.body["api_key"] != nil {
		t.Errorf("adopted: %s", got.text)
	}
	if got := ok("GET", "/engines/quarantined", ""); got.field("api_key") != e.field("api_key") {
		t.Error("the adopted engine has another key")
	}
	quarantine()
	if got := ok("DELETE", "/quarantine/"+id, ""); got.field("status") != "discarded" || got.field("engine_id") != id {
		t.Errorf("discarded: %s", got.text)
	}
	if got := ok("GET", "/quarantine", ""); got.field("total") != "0" {
		t.Errorf("quarantined are %s", got.text)
	}
	for _, c := range []struct{ method, path string }{{"POST", "/quarantine/" + id + "/adopt"}, {"DELETE", "/quarantine/" + id}} {
		a.call(t, c.method, c.path, "").want(t, 404, "QUARANTINE_NOT_FOUND")
	}
	ok("DELETE", "/engines/quarantined", "")
}
