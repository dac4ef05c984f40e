package link

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A refusal is reported with the endpoint and the right that it needs, and its response can
// still be read whole.
func TestRefusals(t *testing.T) {
	body := strings.Repeat("Permission denied ", 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("status") {
		case "403":
			w.WriteHeader(http.StatusForbidden)
		case "conflict":
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"Errors":[{"What":"current modify index"}]}`)
			return
		case "409":
			w.WriteHeader(http.StatusConflict)
		case "500":
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = io.WriteString(w, body)
	}))
	defer srv.Close()
	at, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		kind              Kind
		method, path      string
		trying            bool
		endpoint, refused string // the right; "-": none is reported
	}{
		"ok":                      {Consul, "GET", "/v1/kv/orch/deployment", false, "", "-"},
		"a key":                   {Consul, "GET", "/v1/kv/orch/deployment?status=403", false, "GET /v1/kv/orch/deployment", "key: read"},
		"a user's row":            {Consul, "GET", "/v1/kv/orch/engines/ab/product/dXNlcg?status=403", false, "GET /v1/kv/orch/engines/*", "key: read"},
		"a change":                {Consul, "PUT", "/v1/txn?status=409", false, "PUT /v1/txn", "key: write"},
		"a conflict":              {Consul, "PUT", "/v1/txn?status=conflict", false, "", "-"},
		"a conflict of Nomad's":   {Nomad(at.Host), "PUT", "/v1/var/x?status=409", false, "", "-"},
		"tried":                   {Consul, "GET", "/v1/kv/x?status=403", true, "", "-"},
		"a job":                   {Nomad(at.Host), "PUT", "/v1/jobs?namespace=engines&status=403", false, "PUT /v1/jobs", `namespace "engines": submit-job; host_volume "engine-*": write`},
		"jobs":                    {Nomad(at.Host), "GET", "/v1/jobs?namespace=engines&status=403", false, "GET /v1/jobs", `namespace "engines": list-jobs`},
		"an engine's job":         {Nomad(at.Host), "GET", "/v1/job/engine-abc?status=403", false, "GET /v1/job/engine-*", `namespace "default": read-job`},
		"an engine's variable":    {Nomad(at.Host), "PUT", "/v1/var/nomad/jobs/engine-abc?namespace=n&status=403", false, "PUT /v1/var/nomad/jobs/engine-*", `namespace "n": variables path "nomad/jobs/engine-*": write`},
		"a signal":                {Nomad(at.Host), "PUT", "/v1/client/allocation/0f8a1c2e-0000-4000-8000-000000000000/signal?namespace=n&status=403", false, "PUT /v1/client/allocation/*/signal", `namespace "n": alloc-lifecycle`},
		"a worker's variable":     {Nomad(at.Host), "DELETE", "/v1/var/nomad/jobs/orch-brain-abc?namespace=n&status=403", false, "DELETE /v1/var/nomad/jobs/orch-brain-*", `namespace "n": variables path "nomad/jobs/orch-brain-*": destroy`},
		"a log":                   {Nomad(at.Host), "GET", "/v1/client/fs/logs/0f8a1c2e-0000-4000-8000-000000000000?namespace=n&status=500", false, "GET /v1/client/fs/logs/*", `namespace "n": read-logs`},
		"a failure":               {Nomad(at.Host), "GET", "/v1/jobs?namespace=n&status=500", false, "", "-"},
		"a brain's key":           {Vault, "GET", "/v1/orch/data/brains/abcdefghijklmnopqrstuvwxyz?status=403", false, "GET /v1/orch/data/brains/*", `path "orch/data/brains/*": read`},
		"a volume":                {Nomad(at.Host), "DELETE", "/v1/volume/host/0f8a1c2e-0000-4000-8000-000000000000/delete?namespace=n&status=403", false, "DELETE /v1/volume/host/*/delete", `namespace "n": host-volume-delete`},
		"a secret":                {Vault, "GET", "/v1/orch/data/engines/abcdefghijklmnopqrstuvwxyz?status=403", false, "GET /v1/orch/data/engines/*", `path "orch/data/engines/*": read`},
		"the provider keys":       {Vault, "PUT", "/v1/orch/data/engine-env?status=403", false, "PUT /v1/orch/data/engine-env", `path "orch/data/engine-env": create, update`},
		"the list of the secrets": {Vault, "GET", "/v1/orch/metadata/engines?list=true&status=403", false, "GET /v1/orch/metadata/engines", `path "orch/metadata/engines": list`},
	} {
		t.Run(name, func(t *testing.T) {
			l := New(tc.kind, &http.Transport{})
			defer l.Close()
			got := Refusal{Needs: "-"}
			l.TellRefusals(func(r Refusal) { got = r })
			req, err := http.NewRequestWithContext(t.Context(), tc.method, srv.URL+tc.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tc.trying {
				req = req.WithContext(Trying(t.Context()))
			}
			resp, err := l.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			read, err := io.ReadAll(resp.Body)
			if err != nil || resp.Body.Close() != nil || !strings.Contains(tc.path, "conflict") && string(read) != body {
				t.Errorf("read %d bytes, %v", len(read), err)
			}
			if len(got.Said) > deniedPeek {
				t.Errorf("%d bytes are quoted", len(got.Said))
			}
			if diff := cmp.Diff([]string{tc.endpoint, tc.refused}, []string{got.Endpoint, got.Needs}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What is quoted names no key, because a key may contain a user_id.
func TestWithoutName(t *testing.T) {
	for said, want := range map[string]string{
		`Permission denied: token with AccessorID 'a' lacks permission 'key:write' on "orch/engines/ab/p/dXNlcg"`: `Permission denied: token with AccessorID 'a' lacks permission 'key:write'`,
		`{"Errors":[{"What":"... lacks permission 'key:write' on \"orch/engines/ab/p/dXNlcg\""}]}`:                `{"Errors":[{"What":"... lacks permission 'key:write'`,
		"ACL token not found": "ACL token not found",
	} {
		if got := WithoutName(said); got != want {
			t.Errorf("%s: got %s", said, got)
		}
	}
}
