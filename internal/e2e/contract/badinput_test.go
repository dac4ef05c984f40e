package contract

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// marker is part of all bad input, and must not appear in the log.
const marker = "MARKER-7f3a"

// bad is an invalid request, and the word that the message must contain.
type bad struct{ body, names string }

// badBodies are refused by every operation with a body.
var badBodies = []bad{
	{`{"` + marker + `": 1}`, marker}, {`{"` + marker + `": 1, "` + marker + `": 2}`, marker}, {`{"` + marker, "JSON"}, {`["` + marker + `"]`, "object"},
	{`"` + marker + `"`, "object"}, {"null", "object"}, {`{} "` + marker + `"`, "JSON"}, {"{\"" + marker + "\xff\": 1}", "JSON"}, {`{"` + marker + strings.Repeat("x", 5000) + `": 1}`, marker},
}

// badFields are refused by one operation.
var badFields = map[string][]bad{
	"provision": {
		{`{"user_id": 5}`, "user_id"}, {`{"user_id": null}`, "user_id"}, {`{}`, "user_id"}, {`{"user_id": ""}`, "user_id"}, {`{"user_id": "` + marker + `\u0000"}`, "user_id"},
		{`{"user_id": "` + marker + `\n"}`, "user_id"}, {`{"user_id": "` + marker + strings.Repeat("x", 256) + `"}`, "user_id"}, {`{"user_id": "u", "user_id": "` + marker + `"}`, "user_id"},
		{`{"user_id": "u", "engine_version": 1}`, "engine_version"}, {`{"user_id": "u", "engine_version": ""}`, "engine_version"}, {`{"user_id": "u", "engine_version": "../` + marker + `"}`, "engine_version"},
	},
	"admit": {{`{"auto_provision": "` + marker + `"}`, "auto_provision"}, {`{"auto_wake": 1}`, "auto_wake"}, {`{"auto_wake": null}`, "auto_wake"}},
	"registerProduct": {
		{`{"display_name": "N"}`, "slug"}, {`{"slug": "` + marker + `", "display_name": "N"}`, "slug"}, {`{"slug": "s", "display_name": ""}`, "display_name"}, {`{"slug": "s"}`, "display_name"},
		{`{"slug": "s", "display_name": "` + marker + `\u0007"}`, "display_name"}, {`{"slug": "s", "display_name": "` + marker + strings.Repeat("x", 200) + `"}`, "display_name"},
		{`{"slug": "s", "display_name": "N", "policy": {"max_engines": -1}}`, "max_engines"}, {`{"slug": "s", "display_name": "N", "policy": {"` + marker + `": 1}}`, marker},
	},
	"setPolicy": {
		{`{}`, "policy"}, {`{"policy": null}`, "policy"}, {`{"policy": []}`, "policy"}, {`{"policy": {"` + marker + `": 1}}`, marker}, {`{"policy": {"max_engines": 1.5}}`, "max_engines"},
		{`{"policy": {"max_engines": -1}}`, "max_engines"}, {`{"policy": {"rate_limit_rpm": -1}}`, "rate_limit_rpm"}, {`{"policy": {"idle_timeout_s": -1}}`, "idle_timeout_s"},
		{`{"policy": {"cpu_mhz": 0}}`, "cpu_mhz"}, {`{"policy": {"memory_mb": 1}}`, "memory_mb"}, {`{"policy": {"warm_pool": "` + marker + `"}}`, "warm_pool"},
		{`{"policy": {"sleep_mode": "` + marker + `"}}`, "sleep_mode"}, {`{"policy": {"node_pool": "` + marker + ` x"}}`, "node_pool"}, {`{"policy": {"engine_image": "/` + marker + `"}}`, "engine_image"},
		{`{"policy": {"allowed_images": ["[` + marker + `"]}}`, "allowed_images"}, {`{"policy": {"allowed_images": "` + marker + `"}}`, "allowed_images"}, {`{"policy": {"max_engines": 1e30}}`, "max_engines"},
		{`{"policy": {"snapshot_interval_s": 299}}`, "snapshot_interval_s"}, {`{"policy": {"snapshot_keep": 0}}`, "snapshot_keep"},
		{`{"policy": {"on_node_lost": "move"}}`, "on_node_lost"}, {`{"policy": {"node_lost_after_s": 59}}`, "node_lost_after_s"},
	},
	"keepAwake": {
		{`{}`, "seconds"}, {`{"seconds": 0}`, "seconds"}, {`{"seconds": 3601}`, "seconds"}, {`{"seconds": 1.5}`, "seconds"}, {`{"seconds": "` + marker + `"}`, "seconds"}, {`{"seconds": null}`, "seconds"},
	},
	"takeSnapshot": {
		{`{"label": 5}`, "label"}, {`{"label": null}`, "label"}, {`{"label": "` + marker + `\u0007"}`, "label"}, {`{"label": "` + marker + strings.Repeat("x", 100) + `"}`, "label"},
	},
	"restoreEngine": {{`{"snapshot_id": 5}`, "snapshot_id"}, {`{"snapshot_id": null}`, "snapshot_id"}, {`{"snapshot_id": ""}`, "snapshot_id"}},
	"importEngine":  {{`{"snapshot_id": 5}`, "snapshot_id"}, {`{"snapshot_id": null}`, "snapshot_id"}, {`{"snapshot_id": ""}`, "snapshot_id"}},
	"forkEngine": {
		{`{}`, "user_id"}, {`{"user_id": 5}`, "user_id"}, {`{"user_id": ""}`, "user_id"}, {`{"user_id": "` + marker + `\u0000"}`, "user_id"}, {`{"user_id": "` + marker + `/../u"}`, "user_id"},
		{`{"user_id": "` + marker + strings.Repeat("x", 256) + `"}`, "user_id"}, {`{"user_id": "v", "snapshot_id": ""}`, "snapshot_id"}, {`{"user_id": "v", "snapshot_id": 5}`, "snapshot_id"},
	},
	"rotatePlatformKey": {
		{`{"overlap_seconds": -1}`, "overlap_seconds"}, {`{"overlap_seconds": 86401}`, "overlap_seconds"}, {`{"overlap_seconds": 0.5}`, "overlap_seconds"}, {`{"overlap_seconds": "` + marker + `"}`, "overlap_seconds"},
	},
}

// badQueries are refused by all lists; the others by one of them.
var badQueries = map[string][]bad{
	"":                  {{"limit=0", "limit"}, {"limit=1001", "limit"}, {"limit=-1", "limit"}, {"limit=1.5", "limit"}, {"limit=" + marker, "limit"}, {"limit=1&limit=2", "limit"}, {"cursor=" + marker, "cursor"}, {"cursor=", "cursor"}, {marker + "=1", marker}, {"limit=%zz" + marker, "query string"}},
	"listEngines":       {{"status=" + marker, "status"}, {"status=Running", "status"}, {"offset=-1", "offset"}, {"offset=" + marker, "offset"}, {"offset=0&cursor=" + marker, "cursor"}},
	"listSnapshots":     {{"limit=101", "limit"}, {"offset=1", "offset"}},
	"listStoredEngines": {{"limit=101", "limit"}, {"status=" + marker, "status"}},
	"listAudit":         {{"action=" + marker, "action"}, {"since=" + marker, "since"}, {"until=2026-01-01", "until"}, {"user_id=" + marker + "%00", "user_id"}, {"user_id=" + marker + strings.Repeat("x", 256), "user_id"}, {"product_id=" + marker, "product_id"}},
}

// The error about an invalid request names the mistake. Such a request changes nothing and
// appears in no log.
func TestBadInput(t *testing.T) {
	t.Parallel()
	const prefix = "bad-input/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "0"})
	c := r.Product(t, nil)
	theAdmin := &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
	product := harness.ProductOf(t, theAdmin, c)
	if _, err := c.Provision(t.Context(), "u", ""); err != nil {
		t.Fatal(err)
	}
	s := harness.OpenStores(t, harness.Shared)
	state := func() string {
		rows, _ := harness.AuditLog(t, theAdmin, "")
		now := versions(s, prefix)
		// These keys change without requests.
		maps.DeleteFunc(now, func(key string, _ uint64) bool {
			return key == prefix+"leader" || key == prefix+"deployment" || strings.HasPrefix(key, prefix+"activity/")
		})
		return fmt.Sprint(len(rows), now)
	}
	before := state()
	keys := map[string]string{harness.PlatformHeader: c.PlatformKey, harness.AdminHeader: harness.AdminKey}
	refuse := func(t *testing.T, o harness.Operation, names string, more ...string) {
		t.Helper()
		got := r.Send(t, o, keys[o.Key], more...)
		got.Want(t, o, http.StatusBadRequest, "INVALID_REQUEST")
		if !strings.Contains(got.Message, names) {
			t.Errorf("%s %s with %.100q: message %q does not name %q", o.Method, o.Path, o.Body, got.Message, names)
		}
	}
	for _, o := range harness.Operations {
		if o.Key == "" {
			continue
		}
		t.Run(o.ID, func(t *testing.T) {
			plain := o.Of("u", product)
			if o.Body != "" {
				for _, b := range append(badFields[o.ID], badBodies...) {
					o := plain
					o.Body = b.body
					refuse(t, o, b.names)
				}
				o := plain
				o.Body = `{"x": "` + marker + strings.Repeat("x", 64<<10) + `"}`
				r.Send(t, o, keys[o.Key]).Want(t, o, http.StatusRequestEntityTooLarge, "REQUEST_TOO_LARGE")
				o.Body = "x=" + marker
				r.Send(t, o, keys[o.Key], "Content-Type", "application/x-www-form-urlencoded").Want(t, o, http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE")
			}
			queries := badQueries[o.ID]
			if queries != nil {
				queries = append(queries, badQueries[""]...)
			}
			for _, b := range append(queries, bad{marker + "=1", marker}) {
				o := plain
				o.Path += "?" + b.body
				refuse(t, o, b.names)
			}
			if strings.Contains(o.Path, "{user}") {
				for _, user := range []string{marker + "\x00", marker + "\n", marker + "\x7f", marker + "\u0085", marker + "\xff", marker + strings.Repeat("x", 256), marker + "/../u"} {
					refuse(t, o.Of(user, ""), "user_id")
				}
			}
		})
	}
	provision := harness.Operations[0].Of("new", "")
	for _, key := range []string{"", marker + strings.Repeat("k", 256)} {
		refuse(t, provision, "Idempotency-Key", "Idempotency-Key", key)
	}
	if after := state(); after != before {
		t.Errorf("something changed: it was\n%s\nand is\n%s", before, after)
	}
	if logs := r.Logs.String(); strings.Contains(logs, marker) || r.Logs.Count("code=INVALID_REQUEST") == 0 {
		t.Error("the log has what was sent, or not the code")
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Error(err)
	}
}
