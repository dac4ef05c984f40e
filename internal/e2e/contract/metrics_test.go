package contract

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/contract"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/link"
)

// scrape returns the text of a replica's metrics, and the label sets of the service's own
// metrics by their name.
func scrape(t *testing.T, r *harness.Replica) (text string, series map[string][]map[string]string) {
	t.Helper()
	resp, err := http.Get("http://" + r.OpsAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", resp.Status, err, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	series = map[string][]map[string]string{}
	for name, f := range families {
		if strings.HasPrefix(name, "orch_") {
			for _, m := range f.GetMetric() {
				series[name] = append(series[name], labelsOf(m))
			}
		}
	}
	return string(body), series
}

func labelsOf(m *dto.Metric) map[string]string {
	labels := map[string]string{}
	for _, l := range m.GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	return labels
}

// oneOf returns whether a value is one of a fixed list.
func oneOf[T ~string](values ...T) func(string) bool {
	return func(v string) bool { return slices.Contains(values, T(v)) }
}

// bounded returns which values each label may have; none depends on users or their engines.
func bounded(t *testing.T, slug string) map[string]func(string) bool {
	t.Helper()
	doc, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	routes := append(slices.Collect(maps.Keys(doc.Paths.Map())), "none")
	word := func(v string) bool { return len(v) < 30 && strings.Trim(v, "abcdefghijklmnopqrstuvwxyz_-") == "" }
	code := func(v string) bool {
		return v == "ok" || v == "failed" || strings.Trim(v, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == ""
	}
	kinds := append([]link.CallKind{"sql"}, link.CallKinds...)
	for _, k := range []engine.OpKind{engine.OpProvision, engine.OpStart, engine.OpStop, engine.OpDestroy, engine.OpRotateKey, engine.OpSleep, engine.OpRecover, engine.OpRestart, engine.OpSnapshot, engine.OpRestore, "warm_claim"} {
		kinds = append(kinds, link.CallKind(k))
	}
	return map[string]func(string) bool{
		"method": oneOf("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"), "route": oneOf(routes...),
		"status": func(v string) bool { return len(v) == 3 && strings.Trim(v, "0123456789") == "" || v == "0" },
		"kind":   oneOf(kinds...), "phase": word, "action": word, "outcome": code,
		"store": oneOf("nomad", "consul", "vault", "audit"), "result": oneOf(link.Results...),
		"product": oneOf(slug, "other"), "state": oneOf(engine.States...), "node_pool": oneOf("default"), "of": oneOf("server", "nomad", "consul", "vault"),
	}
}

// TestMetricsDoNotGrowWithUsers: many users and engines neither add series to what the first
// ones made, nor appear in a label or anywhere else in a scrape. No secret is in it.
func TestMetricsDoNotGrowWithUsers(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "4", "ORCH_CONSUL_PREFIX": "metrics/", "ORCH_RECONCILE_INTERVAL_S": "3600"})
	c := r.Product(t, nil)
	products, err := r.Admin().Products(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slug, productID := products.Products[0].Slug, products.Products[0].ProductID
	harness.Eventually(t, "the replica leads", func() error {
		if text, _ := scrape(t, r); !strings.Contains(text, "\norch_leader 1\n") || !strings.Contains(text, "\norch_quota_used{") {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	hidden := make(chan string, 1000)
	live := func(user string) func() error {
		return func() error { return liveOnce(t.Context(), r, c, user, hidden) }
	}
	if err := live("first-user")(); err != nil {
		t.Fatal(err)
	}
	harness.Provision(t, c, "user-that-stays", "") // a product without engines has no series
	_, before := scrape(t, r)
	var users errgroup.Group
	users.SetLimit(4)
	for i := range 12 {
		users.Go(live(fmt.Sprintf("some/user-%d@example.com", i)))
	}
	if err := users.Wait(); err != nil {
		t.Fatal(err)
	}
	text, after := scrape(t, r)
	if len(after["orch_operation_phase_duration_seconds"]) < 20 || len(after["orch_http_requests_total"]) < 8 || len(after["orch_engines"]) != len(engine.States) {
		t.Fatalf("the scrape lacks series, so the test is blind:\n%s", text)
	}
	for name, series := range after {
		// Which results the calls of a store have depends on the time as well, and so does
		// whether a call gets 503 for it; the labels of these are only checked below.
		series, n := undisturbed(series), len(undisturbed(before[name]))
		if len(series) != n && !strings.HasPrefix(name, "orch_store_") && !strings.HasPrefix(name, "orch_reconcile_") {
			t.Errorf("%s had %d series after one user, and has %d after 13:\n%v", name, n, len(series), series)
		}
	}
	may := bounded(t, slug)
	for name, series := range after {
		for _, labels := range series {
			for label, value := range labels {
				if ok := may[label]; ok == nil || !ok(value) {
					t.Errorf("%s has the label %s=%q", name, label, value)
				}
			}
		}
	}
	access := accessLines(r)
	if n := len(access); n < 13*10 || !strings.Contains(access[n-1], "route=") {
		t.Fatalf("the log has %d lines about requests", n)
	}
	if !slices.ContainsFunc(access, func(line string) bool { return strings.Contains(line, "product="+slug+" ") }) {
		t.Error("no line about a request has its product")
	}
	close(hidden)
	secrets := []string{harness.AdminKey, harness.ProviderKey, c.PlatformKey, productID, "http://", "127.0.0.1", "user-that-stays"}
	for s := range hidden {
		secrets = append(secrets, s)
	}
	if len(secrets) < 50 {
		t.Fatalf("only %d values are looked for", len(secrets))
	}
	for _, s := range secrets {
		if strings.Contains(text, s) {
			t.Errorf("the scrape contains %q", s)
		}
		if i := slices.IndexFunc(access, func(line string) bool { return s != "127.0.0.1" && strings.Contains(line, s) }); i >= 0 {
			t.Errorf("a line about a request contains %q: %s", s, access[i])
		}
	}
}

// undisturbed removes the series of calls that failed because a store responded too late.
func undisturbed(series []map[string]string) []map[string]string {
	return slices.DeleteFunc(slices.Clone(series), func(labels map[string]string) bool {
		return labels["status"] == "503" || labels["outcome"] == string(engine.BackendUnavailable)
	})
}

// liveOnce takes a user's engine through its life, makes some calls that are refused, and
// sends what no scrape may contain.
func liveOnce(ctx context.Context, r *harness.Replica, c *client.Client, user string, hidden chan<- string) error {
	e, err := c.Provision(ctx, user, "")
	if err != nil {
		return err
	}
	hidden <- user
	hidden <- e.EngineID
	hidden <- strings.TrimPrefix(e.URL, "http://")
	hidden <- e.APIKey
	admission, err := c.Admit(ctx, user, client.AdmitOptions{})
	if err != nil || !admission.Admitted {
		return fmt.Errorf("admit: %w, %+v", err, admission)
	}
	key, err := c.RotateKey(ctx, user)
	if err != nil {
		return err
	}
	hidden <- key
	for _, call := range []func(context.Context, string, ...client.ChangeOption) (*client.Engine, error){c.Stop, c.Start} {
		if _, err := call(ctx, user); err != nil {
			return err
		}
	}
	if _, err := c.Start(ctx, user); err == nil {
		return fmt.Errorf("a running engine was started")
	}
	for _, path := range []string{"/" + user, "/engines/" + user + "/" + user, "/engines/x?" + user} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+path, nil)
		if err != nil {
			return err
		}
		req.Header.Set(harness.PlatformHeader, key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
	}
	_, err = c.Destroy(ctx, user)
	return err
}

// accessLines returns the lines of the log about requests.
func accessLines(r *harness.Replica) (lines []string) {
	for line := range strings.Lines(r.Logs.String()) {
		if strings.Contains(line, " access: request: ") {
			lines = append(lines, line)
		}
	}
	return lines
}
