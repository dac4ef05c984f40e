package client_test

import (
	"context"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/contract"
)

// operations calls every documented operation, by its operationId, and returns the decoded
// responses.
func operations(ctx context.Context, c *client.Client) map[string]func() (any, error) {
	const user, product = "a/b", "p"
	wrap := func(name string) func(any, error) (any, error) {
		return func(v any, err error) (any, error) { return map[string]any{name: v}, err }
	}
	return map[string]func() (any, error){
		"provision": func() (any, error) { return c.Provision(ctx, user, "image", client.IdempotencyKey("k")) },
		"getEngine": func() (any, error) { return c.Engine(ctx, user) },
		"admit": func() (any, error) {
			return c.Admit(ctx, user, client.AdmitOptions{AutoProvision: true, AutoWake: true})
		},
		"startEngine":   func() (any, error) { return c.Start(ctx, user) },
		"stopEngine":    func() (any, error) { return c.Stop(ctx, user) },
		"destroyEngine": func() (any, error) { return c.Destroy(ctx, user) },
		"rotateKey":     func() (any, error) { return wrap("new_api_key")(c.RotateKey(ctx, user)) },
		"keepAwake":     func() (any, error) { return wrap("keep_awake_until")(c.KeepAwake(ctx, user, time.Minute)) },
		"takeSnapshot": func() (any, error) {
			return wrap("snapshot")(c.Snapshot(ctx, user, "label", client.IdempotencyKey("k")))
		},
		"listSnapshots": func() (any, error) { return c.Snapshots(ctx, user, client.SnapshotPage{Limit: 7, Cursor: "c"}) },
		"deleteSnapshot": func() (any, error) {
			return map[string]string{"status": "deleted"}, c.DeleteSnapshot(ctx, user, "s")
		},
		"restoreEngine": func() (any, error) { return c.Restore(ctx, user, "s", client.IdempotencyKey("k")) },
		"forkEngine":    func() (any, error) { return c.Fork(ctx, user, "v", "s", client.IdempotencyKey("k")) },
		"listEngines": func() (any, error) {
			return c.Engines(ctx, client.EngineFilter{Status: client.Failed, Limit: 7, Offset: 9})
		},
		"getEngineByID": func() (any, error) { return c.EngineByID(ctx, "e") },
		"listNodes":     func() (any, error) { return c.Nodes(ctx) },
		"getStatus":     func() (any, error) { return c.Status(ctx) },
		"getMetrics":    func() (any, error) { return c.Metrics(ctx) },
		"listAudit": func() (any, error) {
			return c.Audit(ctx, client.AuditFilter{UserID: user, Action: "stop", Since: time.Unix(0, 5), Until: time.Unix(9, 0), ProductID: product, Limit: 7, Cursor: "c"})
		},
		"registerProduct": func() (any, error) { return c.RegisterProduct(ctx, "slug", "Name", &fullPolicy) },
		"listProducts":    func() (any, error) { return c.Products(ctx) },
		"getProduct":      func() (any, error) { return c.Product(ctx, product) },
		"setPolicy":       func() (any, error) { return wrap("policy")(c.SetPolicy(ctx, product, fullPolicy)) },
		"rotatePlatformKey": func() (any, error) {
			return wrap("platform_api_key")(c.RotatePlatformKey(ctx, product, time.Hour))
		},
		"deleteProduct": func() (any, error) { return map[string]string{"status": "deleted"}, c.DeleteProduct(ctx, product) },
		"planReconcile": func() (any, error) { return c.PlanReconcile(ctx) },
		"requestReconcile": func() (any, error) {
			return map[string]string{"status": "requested"}, c.Reconcile(ctx)
		},
		"listUnreachableVolumes": func() (any, error) { return c.UnreachableVolumes(ctx) },
		"forgetVolume": func() (any, error) {
			return map[string]string{"status": "forgotten", "engine_id": "text"}, c.ForgetVolume(ctx, "e")
		},
		"getRegistry":  func() (any, error) { return c.Registry(ctx) },
		"planRecovery": func() (any, error) { return wrap("actions")(c.PlanRecovery(ctx)) },
		"recoverRegistry": func() (any, error) {
			return map[string]string{"status": "requested"}, c.RecoverRegistry(ctx)
		},
		"rekey":            func() (any, error) { return c.Rekey(ctx) },
		"listQuarantine":   func() (any, error) { return c.Quarantine(ctx) },
		"adopt":            func() (any, error) { return c.Adopt(ctx, "e", product, user) },
		"evacuateNode":     func() (any, error) { return c.Evacuate(ctx, "node") },
		"getEvacuation":    func() (any, error) { return c.Evacuation(ctx, "node") },
		"cancelEvacuation": func() (any, error) { return c.CancelEvacuation(ctx, "node") },
		"adoptNode":        func() (any, error) { return c.AdoptNode(ctx, "old", "new", true) },
		"listStoredEngines": func() (any, error) {
			return c.StoredEngines(ctx, client.SnapshotPage{Limit: 7, Cursor: "c"})
		},
		"importEngine": func() (any, error) { return c.Import(ctx, "e", "s") },
		"discard": func() (any, error) {
			return map[string]string{"status": "discarded", "engine_id": "text"}, c.Discard(ctx, "e")
		},
		"providerKeys":      func() (any, error) { return c.ProviderKeys(ctx) },
		"applyProviderKeys": func() (any, error) { return c.ApplyProviderKeys(ctx) },
		"getHealth":         func() (any, error) { return c.Health(ctx) },
		"getLive":           func() (any, error) { return map[string]string{"status": "ok"}, c.Live(ctx) },
		"getReady":          func() (any, error) { return map[string]string{"status": "ok"}, c.Ready(ctx) },
	}
}

var fullPolicy = client.Policy{
	MaxEngines: new(1), RateLimitRPM: new(2), EngineImage: "e", IdleTimeoutS: new(3), CPUMHz: new(4), MemoryMB: new(50), BrainMB: new(5),
	AllowedImages: []string{"a*"}, WarmPool: new(6), NodePool: "n", SleepMode: "pause", Isolation: "kata",
	KeyProofPath: "/info", SnapshotIntervalS: new(300), SnapshotKeep: new(7), OnNodeLost: "restore", NodeLostAfterS: new(600),
}

// forReaders are operations without a method, because their responses are for humans.
var forReaders = []string{"getDocument", "getDocs"}

// TestDocument: the client has a method for every documented operation, sends only what the
// document allows, and keeps every property of every response.
func TestDocument(t *testing.T) {
	doc, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	var asked string // the last operation called
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		op, _ := contract.Find(doc, r.Method, r.URL)
		if op == nil {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		asked = op.OperationID
		ok := op.Responses.Status(http.StatusOK).Value
		for name, h := range ok.Headers {
			w.Header().Set(name, headerSample(h.Value.Schema.Value))
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_ = json.NewEncoder(w).Encode(sample(ok.Content.Get("application/json").Schema.Value))
	}))
	defer srv.Close()
	checked := contract.New(doc, srv.Client().Transport)
	c := &client.Client{BaseURL: srv.URL, PlatformKey: "pk", AdminKey: "ak", HTTP: &http.Client{Transport: checked}}
	calls := operations(t.Context(), c)
	for id, op := range operationsOf(doc) {
		if slices.Contains(forReaders, id) {
			continue
		}
		t.Run(id, func(t *testing.T) {
			call := calls[id]
			if call == nil {
				t.Fatal("the client has no method for it")
			}
			got, err := call()
			if err != nil || asked != id {
				t.Fatalf("%v; the call went to %s", err, asked)
			}
			for _, problem := range checked.Take(srv.Listener.Addr().String()) {
				t.Errorf("not as documented: %s", problem)
			}
			want := sample(op.Responses.Status(http.StatusOK).Value.Content.Get("application/json").Schema.Value)
			if diff := cmp.Diff(plain(t, want), plain(t, got)); diff != "" {
				t.Errorf("the response (-) was decoded as (+):\n%s", diff)
			}
		})
	}
	a, err := c.Admit(t.Context(), "u", client.AdmitOptions{})
	if err != nil || a.Rate == nil || *a.Rate != (client.Rate{Limit: 7, Remaining: 7, Reset: 7 * time.Second}) {
		t.Errorf("rate %+v, %v", a.Rate, err)
	}
	// The samples above are of users who are admitted.
	denied, decoded := plain(t, sample(doc.Components.Schemas["Denied"].Value)), new(client.Admission)
	if text, err := json.Marshal(denied); err != nil || json.Unmarshal(text, decoded) != nil || cmp.Diff(denied, plain(t, decoded)) != "" {
		t.Errorf("%v was decoded as %+v, %v", denied, decoded, err)
	}
	all, err := c.FleetEngines(t.Context(), client.FleetFilter{
		ProductID: "p", EngineID: "e", UserID: "a/b", NodeID: "n", Reason: "crashed", Status: client.Failed, Limit: 7, Cursor: "c",
	})
	if err != nil || asked != "listEngines" || all.Age != 7*time.Second || len(all.Engines) != 1 || all.Engines[0].ProductSlug == "" || all.Engines[0].NodeID == "" {
		t.Errorf("%+v, %v; the call went to %s", all, err, asked)
	}
	for _, problem := range checked.Take(srv.Listener.Addr().String()) {
		t.Errorf("not as documented: %s", problem)
	}
	st, err := c.Status(t.Context())
	if err != nil || st.Age != 7*time.Second {
		t.Errorf("age %s, %v", st.Age, err)
	}
}

func operationsOf(doc *openapi3.T) map[string]*openapi3.Operation {
	all := map[string]*openapi3.Operation{}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			all[op.OperationID] = op
		}
	}
	return all
}

// sample returns a value of a schema, with every documented property.
func sample(s *openapi3.Schema) any {
	switch {
	case len(s.OneOf) > 0:
		return sample(s.OneOf[0].Value)
	case len(s.Enum) > 0:
		return s.Enum[0]
	case s.Const != nil:
		return s.Const
	case s.Type.Is("null"):
		return nil
	case s.Type.Includes("object"):
		o := map[string]any{}
		for name, p := range s.Properties {
			o[name] = sample(p.Value)
		}
		return o
	case s.Type.Includes("array"):
		return []any{sample(s.Items.Value)}
	case s.Type.Includes("integer"), s.Type.Includes("number"):
		return 77
	case s.Type.Includes("boolean"):
		return true
	case s.Format == "date-time":
		return "2026-11-24T06:19:47.024Z"
	case s.Pattern == "^[a-z0-9][a-z0-9-]{0,39}$":
		return "slug"
	case s.Pattern == "^/":
		return "/info"
	case s.Pattern == "^sha256:[0-9a-f]{64}$":
		return "sha256:" + strings.Repeat("0123456789abcdef", 4)
	case s.Pattern == "^[0-9a-f]{64}$":
		return strings.Repeat("0123456789abcdef", 4)
	case s.Pattern != "":
		return s.Pattern[1:9] + "xVxxQxnKYrkVKg5ice4im5jofbCCSuAShewQSREGrqk" // a prefix and 43 characters
	}
	return "text"
}

func headerSample(s *openapi3.Schema) string {
	switch {
	case len(s.Enum) > 0:
		return s.Enum[0].(string)
	case s.Type.Is("integer"), s.Type.Is("number"):
		return "7"
	}
	return "text"
}

// plain converts a value to plain JSON types.
func plain(t *testing.T, v any) (p any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCodesAreThoseOfTheDocument: there is an error for every documented code and for the
// two that belong to no operation, and no other.
func TestCodesAreThoseOfTheDocument(t *testing.T) {
	doc, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"NOT_FOUND": true, "METHOD_NOT_ALLOWED": true}
	for _, op := range operationsOf(doc) {
		for _, resp := range op.Responses.Map() {
			list, _ := resp.Value.Extensions["x-codes"].([]any)
			for _, code := range list {
				want[code.(string)] = true
			}
		}
	}
	file, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Code" {
			code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			got[code] = true
		}
		return true
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("documented (-), in the client (+):\n%s", diff)
	}
}

// TestWordsAreThoseOfTheDocument: the states and the reasons of a denial.
func TestWordsAreThoseOfTheDocument(t *testing.T) {
	doc, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	schemas := doc.Components.Schemas
	for name, c := range map[string]struct {
		documented []any
		words      []string
	}{
		"states": {schemas["State"].Value.Enum, client.States},
		"denials": {schemas["Denied"].Value.Properties["reason"].Value.Enum, []string{
			client.DeniedNotFound, client.DeniedSleeping, client.DeniedStopped, client.DeniedProvisioning, client.DeniedUnhealthy, client.DeniedDestroying,
		}},
	} {
		want := map[string]bool{}
		for _, word := range c.documented {
			want[word.(string)] = true
		}
		if got := slices.Sorted(slices.Values(c.words)); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// TestPages: the iterators request page after page, and stop when the loop ends.
func TestPages(t *testing.T) {
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RequestURI())
		pages := map[string]string{
			"":  `{"engines": [{"user_id": "a"}, {"user_id": "b"}], "snapshots": [{"user_id": "a"}, {"user_id": "b"}], "entries": [{"id": 3}, {"id": 2}], "next_cursor": "2"}`,
			"2": `{"engines": [], "snapshots": [], "entries": [], "next_cursor": "3"}`,
			"3": `{"engines": [{"user_id": "c"}], "snapshots": [{"user_id": "c"}], "entries": [{"id": 1}]}`,
		}
		if page, ok := pages[r.URL.Query().Get("cursor")]; ok {
			_, _ = io.WriteString(w, page)
			return
		}
		w.WriteHeader(http.StatusBadRequest)
	}))
	defer srv.Close()
	c := &client.Client{BaseURL: srv.URL, HTTP: srv.Client()}
	var users []string
	for e, err := range c.AllEngines(t.Context(), client.EngineFilter{Status: "running", Limit: 2, Offset: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		users = append(users, e.UserID)
	}
	want := []string{"/engines?limit=2&offset=1&status=running", "/engines?cursor=2&limit=2&status=running", "/engines?cursor=3&limit=2&status=running"}
	if !slices.Equal(users, []string{"a", "b", "c"}) || !slices.Equal(asked, want) {
		t.Errorf("got %v from %v", users, asked)
	}
	asked, users = nil, nil
	for s, err := range c.AllSnapshots(t.Context(), "u") {
		if err != nil {
			t.Fatal(err)
		}
		users = append(users, s.UserID)
	}
	if !slices.Equal(users, []string{"a", "b", "c"}) || len(asked) != 3 || asked[1] != "/engines/u/snapshots?cursor=2" {
		t.Errorf("got %v from %v", users, asked)
	}
	asked, users = nil, nil
	for e, err := range c.AllFleetEngines(t.Context(), client.FleetFilter{NodeID: "n", Limit: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		users = append(users, e.UserID)
	}
	if !slices.Equal(users, []string{"a", "b", "c"}) || len(asked) != 3 || asked[1] != "/engines?cursor=2&limit=2&node_id=n" {
		t.Errorf("got %v from %v", users, asked)
	}
	var ids []int64
	for e, err := range c.AllAudit(t.Context(), client.AuditFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	if !slices.Equal(ids, []int64{3, 2, 1}) {
		t.Errorf("got %v", ids)
	}
	asked = nil
	for _, err := range c.AllEngines(t.Context(), client.EngineFilter{}) {
		if err != nil {
			t.Error(err)
		}
		break
	}
	if len(asked) != 1 {
		t.Errorf("after the walk was ended: %v", asked)
	}
	asked = nil
	for _, err := range c.AllAudit(t.Context(), client.AuditFilter{Cursor: "nonsense"}) {
		if err == nil {
			t.Error("no error")
		}
	}
	if len(asked) != 1 {
		t.Errorf("after an error: %v", asked)
	}
}
