package brains

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/brain/store/storetest"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestStoreOverTLS: a store with a certificate of a private authority that encrypts its objects
// at rest. The service and the worker on the node trust that authority and no other, and the
// store is asked to encrypt.
func TestStoreOverTLS(t *testing.T) {
	t.Parallel()
	var p *storetest.Proxy
	b := newBucketBehind(t, func(addr string) *storetest.Proxy { p = storetest.StartTLSProxy(t, addr); return p })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte(p.CA), 0o600); err != nil {
		t.Fatal(err)
	}
	url := "ORCH_SNAPSHOT_URL=" + strings.Replace(b.StoreURL(b.via), "endpoint=http:", "endpoint=https:", 1) + "&sse=AES256"
	const prefix = "ORCH_CONSUL_PREFIX=store-over-tls/"
	c := harness.StartService(t, harness.Shared, b.vars(url, prefix, "ORCH_SNAPSHOT_CA_FILE="+ca)).Product(t, nil)
	stranger := harness.At(c, harness.StartService(t, harness.Shared, b.vars(url, prefix))) // the replica that lacks the authority
	ctx := t.Context()
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "before")
	var began, manifests atomic.Int64
	b.fails(e.EngineID, func(_ http.ResponseWriter, r *http.Request) bool {
		encrypts := r.Header.Get("X-Amz-Server-Side-Encryption") == "AES256"
		switch {
		case isBegin(r) && encrypts:
			began.Add(1)
		case isManifest(r) && encrypts:
			manifests.Add(1)
		case isPart(r) && encrypts:
			t.Error("a part says how the object is encrypted, which S3 refuses")
		}
		return false
	})
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if began.Load() != 1 || manifests.Load() != 1 {
		t.Errorf("%d uploads and %d manifests were to be encrypted by the store", began.Load(), manifests.Load())
	}
	restored, err := c.Restore(ctx, "u", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, restored, restored.APIKey).Knows("before"); err != nil {
		t.Error(err)
	}

	other := harness.Provision(t, c, "other", "")
	harness.Remember(t, other, other.APIKey, "before")
	harness.WantCode(t, harness.ErrOf(stranger.Snapshot(ctx, "other", "")), 503, "SNAPSHOT_STORE_UNAVAILABLE")
	settled(t, c, "other")
	unharmed(t, c, other, "before")
}

// TestInstanceCredentials: without an access key the service uses those of its machine or
// container, which end, and asks for new ones.
func TestInstanceCredentials(t *testing.T) {
	var asked atomic.Int64
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "token-of-the-container" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		asked.Add(1)
		_ = json.NewEncoder(w).Encode(map[string]string{
			"AccessKeyId": storetest.Credentials.AccessKey, "SecretAccessKey": storetest.Credentials.SecretKey,
			"Expiration": time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339),
		})
	}))
	t.Cleanup(role.Close)
	// As on a machine of a cloud that gives roles to containers.
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
	t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "token-of-the-container")
	b := newBucket(t)
	c := harness.StartService(t, harness.Shared, b.vars("ORCH_SNAPSHOT_ACCESS_KEY=", "ORCH_SNAPSHOT_SECRET_KEY=")).Product(t, nil)
	ctx := t.Context()
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "before")
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	after := asked.Load()
	if after == 0 {
		t.Error("nobody has asked for the credentials")
	}
	restored, err := c.Restore(ctx, "u", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, restored, restored.APIKey).Knows("before"); err != nil {
		t.Error(err)
	}
	if asked.Load() == after {
		t.Error("the credentials that have ended were used again")
	}
}
