package contract

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/internal/contract"
	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestOperationsAreThoseOfTheDocument(t *testing.T) {
	doc, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	var documented, here []string
	for _, a := range contract.Answers(doc) {
		documented = append(documented, a.Operation)
	}
	for _, o := range harness.Operations {
		here = append(here, o.ID)
		u, err := url.Parse("http://host" + o.Of("u", harness.NoProduct).Path)
		if err != nil {
			t.Fatal(err)
		}
		if found, _ := contract.Find(doc, o.Method, u); found == nil || found.OperationID != o.ID {
			t.Errorf("%s %s is not %s", o.Method, o.Path, o.ID)
		}
	}
	slices.Sort(here)
	if documented = slices.Compact(documented); !slices.Equal(here, documented) {
		t.Errorf("tested are %v, documented %v", here, documented)
	}
}

// Every operation refuses callers without a key, unknown input, and too large bodies; every
// operation about an object returns the right error if there is none.
func TestEveryOperationRefuses(t *testing.T) {
	t.Parallel()
	const prefix = "refuses/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "0", "ORCH_CONSUL_PREFIX": prefix, "ORCH_RECONCILE_INTERVAL_S": "3600"})
	c, s := r.Product(t, nil), harness.OpenStores(t, harness.Shared)
	keys := map[string]string{harness.PlatformHeader: c.PlatformKey, harness.AdminHeader: harness.AdminKey}
	for _, o := range harness.Operations {
		o := o.Of("nobody", harness.NoProduct)
		if o.Key == "" {
			if got := r.Send(t, o, ""); got.Status != 200 {
				t.Errorf("%s returns %d %s", o.Path, got.Status, got.Text)
			}
			continue
		}
		key := keys[o.Key]
		stranger := map[string]string{harness.PlatformHeader: "INVALID_PLATFORM_KEY", harness.AdminHeader: "INVALID_ADMIN_KEY"}[o.Key]
		r.Send(t, o, "").Want(t, o, 401, stranger)
		r.Send(t, o, "pk-sept-"+strings.Repeat("A", 43)).Want(t, o, 401, stranger)
		bad := o
		bad.Path += "?typo=1"
		if got := r.Send(t, bad, key); got.Status != 400 || !strings.Contains(got.Message, "typo") {
			t.Errorf("%s %s: got %d %s", o.Method, bad.Path, got.Status, got.Text)
		}
		if o.Body != "" {
			bad = o
			bad.Body = `{"typo": 1}`
			if got := r.Send(t, bad, key); got.Status != 400 || !strings.Contains(got.Message, "typo") {
				t.Errorf("%s %s: got %d %s", o.Method, bad.Path, got.Status, got.Text)
			}
			bad.Body = strings.Repeat(" ", 64<<10+1)
			r.Send(t, bad, key).Want(t, bad, 413, "REQUEST_TOO_LARGE")
			r.Send(t, o, key, "Content-Type", "text/plain").Want(t, o, 415, "UNSUPPORTED_MEDIA_TYPE")
		}
		switch {
		case strings.Contains(o.Path, harness.NoProduct):
			missing := "PRODUCT_NOT_FOUND"
			switch o.ID {
			case "forgetVolume":
				missing = "VOLUME_NOT_FOUND"
			case "adopt", "discard":
				missing = "QUARANTINE_NOT_FOUND"
			case "importEngine":
				missing = "SNAPSHOT_NOT_FOUND"
			case "getEngineByID":
				missing = "ENGINE_NOT_FOUND"
			}
			r.Send(t, o, key).Want(t, o, 404, missing)
			// No other path of the registry can be reached by an id.
			strange := o
			for _, id := range []string{"..%2Fslugs%2F" + harness.NoProduct, "%00", "%2F", "x", "..", strings.Repeat("a", 5000)} {
				strange.Path = strings.Replace(o.Path, harness.NoProduct, id, 1)
				r.Send(t, strange, key).Want(t, strange, 404, missing)
			}
		case strings.Contains(o.Path, "/nobody") && o.ID != "admit":
			r.Send(t, o, key).Want(t, o, 404, "ENGINE_NOT_FOUND")
		}
	}
	// If nothing is known about an engine, its owner cannot be determined.
	if _, err := s.Consul.KV().Put(&consul.KVPair{Key: prefix + "quarantine/" + harness.NoProduct, Value: []byte(`{"engine_id": "` + harness.NoProduct + `"}`)}, nil); err != nil {
		t.Fatal(err)
	}
	harness.WantCode(t, harness.ErrOf(r.Admin().Adopt(t.Context(), harness.NoProduct, "", "")), 404, "PRODUCT_NOT_FOUND")
	// These two are open to both keys.
	for _, path := range []string{"/status", "/audit"} {
		o := harness.Operation{Method: "GET", Path: path, Key: harness.AdminHeader}
		r.Send(t, o, "nonsense").Want(t, o, 401, "INVALID_ADMIN_KEY")
	}
}
