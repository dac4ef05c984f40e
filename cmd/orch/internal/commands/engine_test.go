package commands

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

const engineKey = "sk-sept-of-the-tests"

// engineOf returns a response about an engine, with additional fields.
func engineOf(status, more string) string {
	return fmt.Sprintf(`{"engine_id": "e1", "user_id": "u", "status": %q, "api_key": %q%s}`, status, engineKey, more)
}

const (
	gone     = "gone"                  // the response that there is no engine
	later    = "later"                 // the response that the same call may succeed later
	provided = `, "last_operation": {` // the beginning of a finished operation
)

// scripted is a service with the given successive responses; it repeats the last one.
func scripted(t *testing.T, w *world, responses ...string) {
	t.Helper()
	var mu sync.Mutex
	calls := 0
	s := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		answer := responses[min(calls, len(responses)-1)]
		calls++
		switch answer {
		case gone:
			out.WriteHeader(http.StatusNotFound)
			answer = `{"error": {"code": "ENGINE_NOT_FOUND", "message": "no engine", "request_id": "r"}}`
		case later:
			out.WriteHeader(http.StatusServiceUnavailable)
			answer = `{"error": {"code": "BACKEND_UNAVAILABLE", "message": "no Consul", "request_id": "r"}}`
		}
		_, _ = out.Write([]byte(answer))
	}))
	t.Cleanup(s.Close)
	w.vars[urlVar] = s.URL
}

// TestKeysAreHidden: text and JSON contain an engine's key only on request.
func TestKeysAreHidden(t *testing.T) {
	admitted := `{"admitted": true, "engine": ` + engineOf("running", "") + `}`
	for name, answer := range map[string]string{"engine show": engineOf("running", ""), "engine admit": admitted, "engine wait": engineOf("running", "")} {
		for _, args := range [][]string{{"u"}, {"u", "-json"}, {"u", "-key"}, {"u", "-key", "-json"}} {
			if name == "engine wait" && slices.Contains(args, "-key") {
				continue
			}
			w := newWorld(t, "")
			scripted(t, w, answer)
			code := w.run(name, args...)
			if got := w.out.String(); code != 0 || !strings.Contains(got, "e1") || strings.Contains(got, engineKey) != slices.Contains(args, "-key") {
				t.Errorf("%s %v: exit code %d, %q, stderr %q", name, args, code, got, w.err.String())
			}
		}
	}
}

func TestEngineWait(t *testing.T) {
	const (
		booting = `, "operation": {"id": "o", "kind": "provision", "step": "boot", "began_at": "2026-01-31T12:00:00Z"}`
		booted  = provided + `"id": "o", "kind": "provision", "outcome": "ok"}`
		failed  = provided + `"id": "o", "kind": "provision", "outcome": "BOOT_TIMEOUT", "message": "it did not boot"}`
	)
	for name, c := range map[string]struct {
		args      []string
		responses []string
		code      int
		stdout    string
		stderr    string
	}{
		"no operation":              {nil, []string{engineOf("stopped", "")}, 0, "Status  stopped", ""},
		"its end":                   {nil, []string{engineOf("provisioning", booting), engineOf("running", booted)}, 0, "provision: ok", ""},
		"its failure":               {nil, []string{engineOf("provisioning", booting), engineOf("failed", failed)}, 1, "provision: BOOT_TIMEOUT", "it did not boot\n  code BOOT_TIMEOUT"},
		"a service that is back":    {nil, []string{engineOf("provisioning", booting), later, engineOf("running", booted)}, 0, "running", "(waiting)"},
		"the end of a destroy":      {nil, []string{engineOf("destroying", booting), gone}, 0, "destroyed", ""},
		"a state":                   {[]string{"-for", "sleeping"}, []string{engineOf("running", ""), engineOf("sleeping", failed)}, 0, "sleeping", ""},
		"destroyed":                 {[]string{"-for", "destroyed"}, []string{engineOf("destroying", ""), gone}, 0, "destroyed", ""},
		"nobody":                    {nil, []string{gone}, 1, "", "ENGINE_NOT_FOUND"},
		"nobody runs":               {[]string{"-for", "running"}, []string{gone}, 1, "", "ENGINE_NOT_FOUND"},
		"a service that is away":    {nil, []string{later}, 1, "", "BACKEND_UNAVAILABLE"},
		"destroyed in the meantime": {[]string{"-for", "running"}, []string{engineOf("stopped", ""), gone}, 1, "", "ENGINE_NOT_FOUND"},
		"too long":                  {[]string{"-for", "running", "-timeout", "300ms"}, []string{engineOf("stopped", "")}, 124, "", "timed out after 300ms; the engine is stopped"},
		"too long an operation":     {[]string{"-timeout", "300ms"}, []string{engineOf("provisioning", booting)}, 124, "", "(provision) is in progress"},
		"indefinitely":              {[]string{"-timeout", "0"}, []string{engineOf("provisioning", booting), engineOf("running", booted)}, 0, "running", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			scripted(t, w, c.responses...)
			code := w.run("engine wait", append(c.args, "u")...)
			if stdout, stderr := w.out.String(), w.err.String(); code != c.code || !strings.Contains(stdout, c.stdout) || c.stdout == "" && stdout != "" ||
				!strings.Contains(stderr, c.stderr) || c.stderr == "" && stderr != "" {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}

// TestEngineWatch: each change is a line, and nothing else is printed.
func TestEngineWatch(t *testing.T) {
	list := func(engines ...string) string { return `{"engines": [` + strings.Join(engines, ",") + `], "total": 2}` }
	other := `{"engine_id": "e2", "user_id": "v", "status": "failed", "reason": "crashed"}`
	w := newWorld(t, "")
	scripted(t, w, list(engineOf("running", ""), other), list(engineOf("running", ""), other), later,
		list(engineOf("sleeping", ""), other), list(other, engineOf("sleeping", "")), list(strings.Replace(other, "crashed", "oom", 1)))
	target, err := choose(&w.Env, choice{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := target.client(&w.Env, needsPlatformKey)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	call := &cmdline.Call{Env: &w.Env}
	watch := &watcher{in: &invocation{Call: call, client: c}, now: func() time.Time { return at }, seen: map[string]client.Engine{}}
	for i, want := range []string{
		"2026-01-31 12:00:00Z  running       u\n2026-01-31 12:00:00Z  failed        v  reason=crashed\n", "", "",
		"2026-01-31 12:00:00Z  sleeping      u\n", "",
		"2026-01-31 12:00:00Z  failed        v  reason=oom\n2026-01-31 12:00:00Z  destroyed     u\n", "",
	} {
		done, err := watch.look(t.Context())
		if got := w.takeOut(); got != want || done || (err != nil) != (i == 2) {
			t.Errorf("look %d prints %q, done %t, %v; want %q", i, got, done, err, want)
		}
	}

	// One engine, as JSON, watched from before its creation.
	w = newWorld(t, "")
	scripted(t, w, gone, engineOf("provisioning", `, "operation": {"kind": "provision"}`), engineOf("running", ""), gone)
	c.BaseURL = w.vars[urlVar]
	call.Env, call.JSON, call.Args, watch.seen = &w.Env, true, []string{"u"}, map[string]client.Engine{}
	for i, want := range []string{"", "provisioning provision", "running ", "destroyed ", ""} {
		if _, err := watch.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		text, got := w.takeOut(), ""
		if text != "" {
			var line struct {
				Time time.Time `json:"time"`
				client.Engine
			}
			if err := json.Unmarshal([]byte(text), &line); err != nil || !line.Time.Equal(at) || line.UserID != "u" || line.EngineID != "e1" || strings.Contains(text, engineKey) {
				t.Errorf("look %d prints %q, %v", i, text, err)
			}
			got = line.Status + " " + underWay(line.Engine)
		}
		if got != want {
			t.Errorf("look %d shows %q, want %q", i, got, want)
		}
	}
}

// TestEmptyLists: an empty list has a message in text, and is a list in JSON.
func TestEmptyLists(t *testing.T) {
	for name, c := range map[string]struct{ response, says, json string }{
		"engine list":                {`{"engines": [], "total": 0}`, "no engines\n", `"engines": []`},
		"engine list -status failed": {`{"engines": [], "total": 0}`, "no engines have status failed\n", `"engines": []`},
		"engine quarantine":          {`{"engines": [], "total": 0}`, "no engine is quarantined\n", `"engines": []`},
		"product list":               {`{"products": [], "total": 0}`, "no products; orch product register creates one\n", `"products": []`},
		"volume list":                {`{"unreachable_volumes": [], "total": 0}`, "no volume is unreachable\n", `"unreachable_volumes": []`},
		"audit tail":                 {`{"entries": []}`, "no rows\n", ""},
		"reconcile -dry-run":         {`{"actions": [], "incomplete": []}`, "nothing to do\n", `"actions": []`},
		"registry recover -dry-run":  {`{"actions": []}`, "nothing to do\n", `"actions": []`},
	} {
		for _, flag := range []string{"", " -json"} {
			w := newWorld(t, "")
			scripted(t, w, c.response)
			code := w.run(name + flag)
			want := c.says
			if flag != "" {
				want = c.json
			}
			if got := w.out.String(); code != 0 || !strings.Contains(got, want) || flag == "" && got != want || w.err.Len() > 0 {
				t.Errorf("%s%s: exit code %d, %q, stderr %q", name, flag, code, got, w.err.String())
			}
		}
	}
}

// TestExportLine: a new platform key is in the last line, for a shell, and in a field in
// JSON.
func TestExportLine(t *testing.T) {
	for _, args := range [][]string{{"product register", "acme"}, {"product rotate-key", "acme"}} {
		w := newWorld(t, "")
		scripted(t, w, `{"product_id": "p", "slug": "acme", "platform_api_key": "pk-sept-x_y-z"}`)
		if code := w.run(args[0], args[1]); code != 0 || !strings.HasPrefix(w.out.String(), "Product") || !strings.HasSuffix(w.out.String(), "\n\nexport ORCH_PLATFORM_KEY=pk-sept-x_y-z\n") {
			t.Errorf("%v: exit code %d, %q, stderr %q", args, code, w.out.String(), w.err.String())
		}
		w.takeOut()
		var answer map[string]any
		if code := w.run(args[0], args[1], "-json"); code != 0 || json.Unmarshal(w.out.Bytes(), &answer) != nil || answer["platform_api_key"] != "pk-sept-x_y-z" {
			t.Errorf("%v -json: exit code %d, %q", args, code, w.out.String())
		}
	}
}

// TestPolicySetLosesNoEdit: another field is changed between the read and the write; both
// changes are in the policy.
func TestPolicySetLosesNoEdit(t *testing.T) {
	var mu sync.Mutex
	policy, version, writes := `{"max_engines": 1}`, 1, 0
	tag := func() string { return fmt.Sprintf(`"%016x"`, version) }
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodGet {
			w.Header().Set("ETag", tag())
			_, _ = fmt.Fprintf(w, `{"product_id": "p", "slug": "acme", "policy": %s}`, policy)
			return
		}
		if writes++; writes == 1 { // the other change is earlier
			policy, version = `{"max_engines": 1, "warm_pool": 7}`, version+1
		}
		if match := r.Header.Get("If-Match"); match != tag() {
			if match == "" {
				t.Error("a policy is written without If-Match")
			}
			w.WriteHeader(http.StatusPreconditionFailed)
			_, _ = w.Write([]byte(`{"error": {"code": "POLICY_CHANGED", "message": "changed", "request_id": "r"}}`))
			return
		}
		var body struct{ Policy json.RawMessage }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		policy, version = string(body.Policy), version+1
		_ = json.NewEncoder(w).Encode(body)
	}))
	t.Cleanup(s.Close)
	w := newWorld(t, "")
	w.vars[urlVar] = s.URL
	if code := w.run("product policy", "-set", "rate_limit_rpm=60", "acme"); code != 0 || w.out.String() != "max_engines     1\nrate_limit_rpm  60\nwarm_pool       7\n" {
		t.Errorf("exit code %d, %q, stderr %q", code, w.out.String(), w.err.String())
	}
	if writes != 2 {
		t.Errorf("%d writes, want 2", writes)
	}
}

// TestProductOfTheContext: the context names the product if there is no argument.
func TestProductOfTheContext(t *testing.T) {
	w := newWorld(t, "")
	vars, asked := answering(t, map[string]string{"GET /products/acme": `{"product_id": "p", "slug": "acme"}`})
	w.vars = map[string]string{"KEY": "the key of the admin"}
	_, address, _ := strings.Cut(vars[0], "=")
	if code := w.run("context add", "-address", address, "-product", "acme", "-admin-key-env", "KEY", "c"); code != 0 {
		t.Fatal(w.err.String())
	}
	w.takeOut()
	for _, name := range []string{"product show", "product policy"} {
		if code := w.run(name); code != 0 {
			t.Errorf("%s: exit code %d, stderr %q", name, code, w.err.String())
		}
	}
	if got := asked(); got != "GET /products/acme, GET /products/acme" {
		t.Errorf("it called %s", got)
	}
}
