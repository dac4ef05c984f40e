package commands

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// answering is a service with fixed responses that records the calls.
func answering(t *testing.T, answers map[string]string) (vars []string, asked func() string) {
	t.Helper()
	var mu sync.Mutex
	var calls []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call := r.Method + " " + r.URL.EscapedPath()
		mu.Lock()
		calls = append(calls, call)
		mu.Unlock()
		answer, known := answers[call]
		if !known || r.Header.Get("X-Admin-Key") != "the key of the admin" {
			w.WriteHeader(http.StatusNotFound)
			answer = `{"error": {"code": "VOLUME_NOT_FOUND", "message": "there is no unreachable volume", "request_id": "r"}}`
			if strings.HasPrefix(call, "GET /products/") {
				answer = `{"error": {"code": "PRODUCT_NOT_FOUND", "message": "there is no such product", "request_id": "r"}}`
			}
		}
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	return []string{"ORCH_URL=" + s.URL, "ORCH_ADMIN_KEY=the key of the admin"}, func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(calls, ", ")
	}
}

// orch runs a command with only vars in its environment.
func orch(t *testing.T, vars []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	w := newWorld(t, "")
	w.vars = map[string]string{}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		w.vars[name] = value
	}
	code = Program().Run(&w.Env, args)
	return code, w.out.String(), w.err.String()
}

func TestReconcileCommand(t *testing.T) {
	plan := `{"actions": [{"subject": "orphan", "engine_id": "e1", "action": "mark_orphan", "why": "key without a row"}], "incomplete": ["unreachable_volumes"]}`
	vars, asked := answering(t, map[string]string{"GET /reconcile": plan, "POST /reconcile": `{"status": "requested"}`})
	code, stdout, stderr := orch(t, vars, "reconcile", "-dry-run")
	if code != 0 || !strings.Contains(stdout, "mark_orphan  orphan   e1") || !strings.Contains(stdout, "key without a row") || !strings.Contains(stderr, "unreachable_volumes") {
		t.Errorf("-dry-run: %d, %q, %q", code, stdout, stderr)
	}
	if code, stdout, _ := orch(t, vars, "reconcile", "-dry-run", "-json"); code != 0 || !strings.Contains(stdout, `"action": "mark_orphan"`) {
		t.Errorf("-dry-run -json: %d, %q", code, stdout)
	}
	if got := asked(); got != "GET /reconcile, GET /reconcile" {
		t.Errorf("a dry run called %s", got)
	}
	if code, stdout, _ := orch(t, vars, "reconcile"); code != 0 || stdout != "Status  requested\n" {
		t.Errorf("%d, %q", code, stdout)
	}
}

func TestVolumeForgetCommand(t *testing.T) {
	vars, asked := answering(t, map[string]string{"DELETE /unreachable-volumes/e1": `{"status": "forgotten", "engine_id": "e1"}`})
	if code, _, stderr := orch(t, vars, "volume", "forget", "e1"); code != 2 || !strings.Contains(stderr, "give -yes") || asked() != "" {
		t.Errorf("unconfirmed: %d, %q, it called %q", code, stderr, asked())
	}
	if code, stdout, _ := orch(t, vars, "volume", "forget", "e1", "-yes"); code != 0 || stdout != "Engine  e1\nStatus  forgotten\n" {
		t.Errorf("%d, %q", code, stdout)
	}
	if code, _, stderr := orch(t, vars, "volume", "forget", "-yes", "e2"); code != 1 || !strings.Contains(stderr, "VOLUME_NOT_FOUND") {
		t.Errorf("an unknown one: %d, %q", code, stderr)
	}
}

func TestVolumeListCommand(t *testing.T) {
	none, _ := answering(t, map[string]string{"GET /unreachable-volumes": `{"unreachable_volumes": [], "total": 0}`})
	if code, stdout, stderr := orch(t, none, "volume", "list"); code != 0 || stdout != "no volume is unreachable\n" {
		t.Errorf("none: %d, %q, %q", code, stdout, stderr)
	}
	some, _ := answering(t, map[string]string{"GET /products/p2": `{"product_id": "p2"}`, "GET /unreachable-volumes": `{"unreachable_volumes": [{
		"engine_id": "e1", "product_id": "p1", "user_id": "u1", "node_id": "n1", "node_name": "one", "node_silent": true,
		"volume_id": "v1", "volume_path": "", "since": "2026-11-24T06:19:48Z", "why": "its node does not respond"}], "total": 1}`})
	code, stdout, stderr := orch(t, some, "volume", "list")
	if code != 0 || !regexp.MustCompile(`(?m)^e1 +\S+ \S+ +p1 +u1 +n1 +v1 +- +its node does not respond$`).MatchString(stdout) {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
	if code, stdout, _ := orch(t, some, "volume", "list", "-product", "p2"); code != 0 || stdout != "no volume is unreachable\n" {
		t.Errorf("of another product: %d, %q", code, stdout)
	}
	if code, stdout, stderr := orch(t, some, "volume", "list", "-json"); code != 0 || !strings.Contains(stdout, `"volume_id": "v1"`) {
		t.Errorf("-json: %d, %q, %q", code, stdout, stderr)
	}
}

// TestMistypedProduct: a filter by an unknown product is an error, not an empty list. A deleted
// product, which only its id names, may have left something.
func TestMistypedProduct(t *testing.T) {
	const deleted = "aup5tlyjzermym7ewtwgzih73n"
	vars, asked := answering(t, map[string]string{
		"GET /products": `{"products": [{"product_id": "p1", "slug": "acme"}], "total": 1}`, "GET /unreachable-volumes": `{"unreachable_volumes": [], "total": 0}`,
		"GET /quarantine": `{"engines": [], "total": 0}`, "GET /audit": `{"entries": []}`,
	})
	for _, list := range []string{"volume list", "engine quarantine", "audit tail"} {
		args := append(strings.Fields(list), "-product")
		if code, stdout, stderr := orch(t, vars, append(args, "acmee")...); code != 1 || stdout != "" || !strings.Contains(stderr, "PRODUCT_NOT_FOUND") {
			t.Errorf("%s of a mistyped product: %d, %q, %q", list, code, stdout, stderr)
		}
		for _, name := range []string{"acme", deleted} {
			if code, _, stderr := orch(t, vars, append(args, name)...); code != 0 {
				t.Errorf("%s of %s: %d, %q", list, name, code, stderr)
			}
		}
	}
	if got := asked(); !strings.Contains(got, "GET /products/acmee, GET /products, GET /products/acme,") {
		t.Errorf("it asked %s", got)
	}
}

// TestFleetCommands: the admin's lists, and what the service is asked for.
func TestFleetCommands(t *testing.T) {
	var queries []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.RequestURI())
		answer := `{"engines": [{"engine_id": "e1", "user_id": "u1", "status": "running", "created_at": "2026-11-24T06:19:47Z"}], "total": 1}`
		switch {
		case r.URL.Path == "/products":
			answer = `{"products": [{"product_id": "p1", "slug": "acme"}], "total": 1}`
		case r.URL.Path == "/nodes":
			answer = `{"nodes": [{"node_id": "n1", "name": "client-1", "node_pool": "default", "status": "ready", "eligible": true, "engines": {"running": 3, "sleeping": 4, "failed": 1},
				"warm_engines": 2, "room": {"cpu_mhz": 900, "memory_mb": 700, "disk_mb": 1, "ports": 1}, "ready_volumes": 5, "consul_agent": "failing"}], "total": 1}`
		case r.Header.Get("X-Admin-Key") != "":
			answer = `{"engines": [{"engine_id": "e1", "user_id": "u1", "product_id": "p1", "product_slug": "acme", "node_id": "n1", "status": "failed", "reason": "crashed",
				"created_at": "2026-11-24T06:19:47Z"}], "total": 1}`
		}
		if strings.HasPrefix(r.URL.Path, "/products/") {
			w.WriteHeader(http.StatusNotFound)
			answer = `{"error": {"code": "PRODUCT_NOT_FOUND", "message": "there is no such product", "request_id": "r"}}`
		}
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	address, platform, admin := "ORCH_URL="+s.URL, "ORCH_PLATFORM_KEY=pk", "ORCH_ADMIN_KEY=ak"
	const ofAdmin = `(?m)^PRODUCT +USER +ENGINE +STATUS +REASON +NODE.*\nacme +u1 +e1 +failed +crashed +n1 `
	for _, c := range []struct {
		vars       []string
		line, want string
		query      string
	}{
		{[]string{address, platform, admin}, "engine list", `^USER +STATUS +REASON +URL(?s:.*)\nu1 +running`, "/engines?limit=1000"},
		{[]string{address, admin}, "engine list", ofAdmin, "/engines?limit=1000"},
		{[]string{address, platform, admin}, "engine list -admin -n 5", ofAdmin, "/engines?limit=5"},
		{[]string{address, platform, admin}, "engine list -product acme -status failed", ofAdmin, "/engines?limit=1000&product_id=p1&status=failed"},
		{[]string{address, platform, admin}, "engine list -engine engine-e1", ofAdmin, "/engines?engine_id=e1&limit=1000"},
		{[]string{address, platform, admin}, "engine list -node n1 -user u1 -reason crashed", ofAdmin, "/engines?limit=1000&node_id=n1&reason=crashed&user_id=u1"},
		{[]string{address, platform, admin}, "node list", `(?m)^n1 +client-1 +default +ready +true +8 +3 +1 +2 +5 +900 +700 +failing$`, "/nodes"},
		{[]string{address, admin}, "node list -json", `"consul_agent": "failing"`, "/nodes"},
	} {
		queries = nil
		code, stdout, stderr := orch(t, c.vars, strings.Fields(c.line)...)
		if code != 0 || !regexp.MustCompile(c.want).MatchString(stdout) || queries[len(queries)-1] != c.query {
			t.Errorf("%s: %d, %q, %q; it asked %q", c.line, code, stdout, stderr, queries)
		}
	}
}

func TestNodeAdoptCommand(t *testing.T) {
	vars, asked := answering(t, map[string]string{
		"POST /nodes/new/adopt": `{"adopted": 3, "left": 0, "cleared": 1, "failed": []}`,
		"POST /nodes/bad/adopt": `{"adopted": 0, "left": 2, "cleared": 0, "failed": [{"engine_id": "e1", "why": "its brain is not there"}]}`,
	})
	if code, stdout, stderr := orch(t, vars, "node", "adopt", "old", "new"); code != 0 || stdout != "Adopted                                   3\nDestroyed engines whose data was removed  1\n" || stderr != "" {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
	if code, stdout, _ := orch(t, vars, "node", "adopt", "old", "new", "-processes-ended", "-json"); code != 0 || !strings.Contains(stdout, `"adopted": 3`) {
		t.Errorf("-json: %d, %q", code, stdout)
	}
	code, stdout, stderr := orch(t, vars, "node", "adopt", "bad", "bad")
	if code != 1 || !regexp.MustCompile(`(?m)^Not adopted: e1 +its brain is not there\nLeft for the next call +2$`).MatchString(stdout) || !strings.Contains(stderr, "not adopted") {
		t.Errorf("with failures: %d, %q, %q", code, stdout, stderr)
	}
	if got := asked(); got != "POST /nodes/new/adopt, POST /nodes/new/adopt, POST /nodes/bad/adopt" {
		t.Errorf("it called %s", got)
	}
}

// TestStatusOfProduct: the JSON has what the service sends to a product, and no zeros for
// what only the admin gets.
func TestStatusOfProduct(t *testing.T) {
	answers := map[string]string{
		"GET /status":  `{"total": 1, "by_status": {"running": 1}, "health": "ok", "unhealthy_count": 0, "registry": "ok"}`,
		"GET /metrics": `{"provisions_1h": 2}`,
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, answers[r.Method+" "+r.URL.Path])
	}))
	t.Cleanup(s.Close)
	code, stdout, stderr := orch(t, []string{"ORCH_URL=" + s.URL, "ORCH_PLATFORM_KEY=pk"}, "status", "-json")
	if code != 0 || !strings.Contains(stdout, `"unhealthy_count": 0`) || !strings.Contains(stdout, `"provisions_1h": 2`) || strings.Contains(stdout, "quarantined") || strings.Contains(stdout, "pooled_volumes") {
		t.Errorf("%d, %s, %s", code, stdout, stderr)
	}
}
