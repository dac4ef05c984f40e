package pools

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// runs returns which of the reference engine's images an engine runs: "v2", or "" for the
// standard one.
func runs(t *testing.T, e *client.Engine, key string) string {
	t.Helper()
	var info struct{ Version string }
	status, err := harness.EngineCall(t.Context(), e, key, http.MethodGet, "/info", nil, &info)
	if err != nil || status != http.StatusOK {
		t.Fatalf("info: status %d, %v", status, err)
	}
	return info.Version
}

// again stops and starts an engine.
func again(t *testing.T, c *client.Client, user string) *client.Engine {
	t.Helper()
	if _, err := c.Stop(t.Context(), user); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(t.Context(), user); err != nil {
		t.Fatal(err)
	}
	e, err := c.Engine(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// isPinned fails unless an engine runs this digest of the registry's image, under the name
// that its caller used.
func (g *imageRegistry) isPinned(t *testing.T, e *client.Engine, tag, digest string) {
	t.Helper()
	started := harness.Inspect(t, e).Config.Image
	if e.EngineVersion != g.image(tag) || e.ImageDigest != digest || started != g.addr+"/engine@"+digest {
		t.Errorf("it is %s with %q and runs %s, want %s with %s", e.EngineVersion, e.ImageDigest, started, g.image(tag), digest)
	}
}

// destroyed destroys an engine when the test ends.
func destroyed(t *testing.T, c *client.Client, user string) {
	t.Cleanup(func() {
		if _, err := c.Destroy(context.Background(), user); err != nil {
			t.Error(err)
		}
	})
}

func provisioned(t *testing.T, c *client.Client, user, image string) *client.Engine {
	t.Helper()
	if _, err := c.Provision(t.Context(), user, image); err != nil {
		t.Fatal(err)
	}
	destroyed(t, c, user)
	e, err := c.Engine(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// handedOut provisions until the user has the warm engine that waits: on a busy machine, one
// that responds late is not handed out.
func handedOut(t *testing.T, c *client.Client, user, waiting string) *client.Engine {
	t.Helper()
	harness.Eventually(t, user+" has the warm engine", func() error {
		e, err := c.Provision(t.Context(), user, "")
		if err != nil {
			t.Fatal(err)
		}
		if e.EngineID == waiting {
			return nil
		}
		if _, err := c.Destroy(t.Context(), user); err != nil {
			t.Fatal(err)
		}
		return fmt.Errorf("it has %s, not %s", e.EngineID, waiting)
	})
	destroyed(t, c, user)
	e, err := c.Engine(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// pinned provisions an engine of the registry's image. On a busy machine the request for
// its digest may time out, which is reported; such an engine is created again.
func (g *imageRegistry) pinned(t *testing.T, c *client.Client, user, tag string) (e *client.Engine) {
	t.Helper()
	harness.Eventually(t, "an engine is pinned", func() error {
		if _, err := c.Provision(t.Context(), user, ""); err != nil {
			t.Fatal(err)
		}
		var err error
		if e, err = c.Engine(t.Context(), user); err != nil {
			t.Fatal(err)
		}
		if e.ImageDigest == "" {
			if _, err := c.Destroy(t.Context(), user); err != nil {
				t.Fatal(err)
			}
			return fmt.Errorf("%s is not", g.image(tag))
		}
		return nil
	})
	return e
}

// TestEngineKeepsItsImage moves a tag: existing engines keep the image that they were
// created with, whatever starts them and whatever happens to the registry, and new ones get
// the tag's new image.
func TestEngineKeepsItsImage(t *testing.T) {
	needRegistry(t)
	t.Parallel()
	g := startRegistry(t)
	v1 := g.push("t", "")
	r := harness.StartService(t, harness.Shared, harness.Docker.With(map[string]string{"ORCH_IDLE_TIMEOUT_S": "0"}))
	c := r.Product(t, map[string]any{"engine_image": g.image("t")})
	a := g.pinned(t, c, "a", "t")
	destroyed(t, c, "a")
	g.isPinned(t, a, "t", v1)

	v2 := g.push("t", "v2")
	if v1 == v2 {
		t.Fatal("the tag did not move")
	}
	a = again(t, c, "a")
	g.isPinned(t, a, "t", v1)
	if got := runs(t, a, a.APIKey); got == "v2" {
		t.Errorf("a moved with the tag: it runs %q", got)
	}
	n := 0
	harness.Eventually(t, "a provision sees that the tag has moved", func() error {
		n++
		e := provisioned(t, c, fmt.Sprint("b-", n), "")
		if e.ImageDigest != v2 {
			return fmt.Errorf("it is pinned to %q", e.ImageDigest)
		}
		if got := runs(t, e, e.APIKey); got != "v2" {
			t.Errorf("it runs %q", got)
		}
		g.isPinned(t, e, "t", v2)
		return nil
	})
	log, err := c.Audit(t.Context(), client.AuditFilter{UserID: "a"})
	if err != nil || len(log.Entries) < 3 {
		t.Fatalf("%+v, %v", log, err)
	}
	for _, entry := range log.Entries[:3] {
		said, _ := entry.Metadata["image_digest"].(string)
		if want := map[bool]string{true: v1}[entry.Action != "stop"]; said != want {
			t.Errorf("the audit row of the %s contains %q, want %q", entry.Action, said, want)
		}
	}

	g.remove(v1)
	g.isPinned(t, again(t, c, "a"), "t", v1)
	g.stop()
	g.isPinned(t, again(t, c, "a"), "t", v1)
	b := again(t, c, fmt.Sprint("b-", n))
	g.isPinned(t, b, "t", v2)
}

// TestImageIsPulledSlowly: a boot whose image is still being pulled at its deadline reports
// that, and a start continues with the part that was pulled.
func TestImageIsPulledSlowly(t *testing.T) {
	needRegistry(t)
	t.Parallel()
	g := startRegistry(t)
	g.pushNew("slow", "v7") // nodes have no part of it
	addr, let := g.slowly()
	image := addr + "/engine:slow"
	r := harness.StartService(t, harness.Shared, harness.Docker.With(map[string]string{"ORCH_BOOT_TIMEOUT_S": "15"}))
	c, ctx := r.Product(t, harness.AnyImage), t.Context()
	refused := harness.WantCode(t, harness.ErrOf(c.Provision(ctx, "u", image)), 504, "BOOT_TIMEOUT")
	if !strings.Contains(refused.Message, "still pulling its image") || !strings.Contains(refused.Message, "Downloading image") {
		t.Errorf("a provision got %q", refused.Message)
	}
	harness.IsNow(t, c, "u", "failed", "image_pull")
	// Nomad does not cancel a pull.
	refused = harness.WantCode(t, harness.ErrOf(c.Start(ctx, "u")), 503, "CAPACITY_EXHAUSTED")
	if !strings.Contains(refused.Message, "still pulling its image") {
		t.Errorf("a start got %q", refused.Message)
	}
	harness.IsNow(t, c, "u", "failed", "image_pull")
	let()
	harness.Eventually(t, "it starts", func() error { return harness.ErrOf(c.Start(ctx, "u")) })
	e := harness.IsNow(t, c, "u", "running", "")
	if got := runs(t, e, e.APIKey); got != "v7" {
		t.Errorf("it runs %q", got)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Error(err)
	}
}

// TestImageOnNodesOnly starts images that are in no registry: by their tag, with one
// warning each, until they can be resolved.
func TestImageOnNodesOnly(t *testing.T) {
	needRegistry(t)
	t.Parallel()
	g := startRegistry(t)
	r := harness.StartService(t, harness.Shared, harness.Docker.With(nil))
	c := r.Product(t, map[string]any{"allowed_images": []string{"*", "*/*"}})
	isNot := func(e *client.Engine, tag string) {
		t.Helper()
		if started := harness.Inspect(t, e).Config.Image; e.ImageDigest != "" || started != g.image(tag) {
			t.Errorf("it is pinned to %q and runs %s, want the tag", e.ImageDigest, started)
		}
	}
	g.tag("there", "")
	a := provisioned(t, c, "a", g.image("there"))
	isNot(a, "there")
	isNot(again(t, c, "a"), "there")
	isNot(provisioned(t, c, "b", g.image("there")), "there")

	_, err := c.Provision(t.Context(), "nowhere", g.image("nowhere"))
	harness.WantCode(t, err, 502, "ENGINE_BOOT_FAILED")
	destroyed(t, c, "nowhere")

	digest := g.push("there", "v2")
	harness.Eventually(t, "a start resolves the image", func() error {
		if a = again(t, c, "a"); a.ImageDigest == "" {
			return fmt.Errorf("it is not pinned")
		}
		return nil
	})
	g.isPinned(t, a, "there", digest)

	g.stop()
	g.tag("down", "")
	isNot(provisioned(t, c, "d", g.image("down")), "down")
	for _, tag := range []string{"there", "nowhere", "down"} {
		if warnings := r.Logs.Count("[WARN]", "images:", "image="+g.image(tag)); warnings != 1 {
			t.Errorf("%d warnings of %s", warnings, tag)
		}
	}
}

// TestPinningSwitchedOff starts tags, even for engines that have a digest.
func TestPinningSwitchedOff(t *testing.T) {
	needRegistry(t)
	t.Parallel()
	const prefix = "not-pinned/"
	g := startRegistry(t)
	digest := g.push("t", "")
	vars := harness.Docker.With(map[string]string{"ORCH_CONSUL_PREFIX": prefix})
	r := harness.StartService(t, harness.Shared, vars)
	c := r.Product(t, map[string]any{"engine_image": g.image("t")})
	g.isPinned(t, g.pinned(t, c, "a", "t"), "t", digest)
	r.Stop()
	vars["ORCH_ENGINE_PIN_IMAGES"] = "false"
	off := harness.StartService(t, harness.Shared, vars)
	c.BaseURL = off.URL
	if e := again(t, c, "a"); e.ImageDigest != "" || harness.Inspect(t, e).Config.Image != g.image("t") {
		t.Errorf("it runs %s, and its digest is %q", harness.Inspect(t, e).Config.Image, e.ImageDigest)
	}
	off.Stop()
	delete(vars, "ORCH_ENGINE_PIN_IMAGES")
	on := harness.StartService(t, harness.Shared, vars)
	c.BaseURL = on.URL
	g.isPinned(t, again(t, c, "a"), "t", digest)
	if _, err := c.Destroy(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
}

// TestWarmEnginesFollowTheTag provides warm engines of the current image of their tag.
// While it cannot be resolved, the existing ones stay.
func TestWarmEnginesFollowTheTag(t *testing.T) {
	needRegistry(t)
	t.Parallel()
	const prefix = "warm-tag/"
	g := startRegistry(t)
	v1 := g.push("t", "")
	r := harness.StartService(t, harness.Shared, harness.Docker.With(map[string]string{"ORCH_CONSUL_PREFIX": prefix}))
	s := harness.OpenStores(t, harness.Shared)
	c := r.Product(t, map[string]any{"engine_image": g.image("t"), "warm_pool": 1})
	ready := func(digest string) string {
		t.Helper()
		id := ""
		harness.Eventually(t, "a warm engine of "+digest+" waits", func() error {
			rows := s.WarmRows(prefix)
			if len(rows) != 1 || rows[0].Op != nil || rows[0].State != "running" || rows[0].Digest != digest {
				return fmt.Errorf("%d: %+v", len(rows), rows)
			}
			id = rows[0].EngineID
			return nil
		})
		return id
	}
	a := handedOut(t, c, "a", ready(v1))
	g.isPinned(t, a, "t", v1)
	ready(v1)

	v2 := g.push("t", "v2")
	is := ready(v2)
	b := handedOut(t, c, "b", is)
	if got := runs(t, b, b.APIKey); got != "v2" {
		t.Errorf("b runs %q", got)
	}
	g.isPinned(t, b, "t", v2)
	s.Described(b.EngineID, "Engine of user") // its job is written again
	is = ready(v2)

	g.stop()
	g.tag("t", "v2")
	other, n := r.Product(t, map[string]any{"engine_image": g.image("t"), "cpu_mhz": 11}), 0 // of another kind
	harness.Eventually(t, "the service misses the registry", func() error {
		n++
		if e := provisioned(t, other, fmt.Sprint("e-", n), ""); e.ImageDigest != "" {
			return fmt.Errorf("it knows %s", e.ImageDigest)
		}
		return nil
	})
	// The leader has checked meanwhile, and has removed nothing.
	if d := handedOut(t, c, "d", is); d.ImageDigest != v2 {
		t.Errorf("d has %q", d.ImageDigest)
	}
	g.isPinned(t, again(t, c, "b"), "t", v2)
}

// TestRebuiltRowKeepsItsImage removes an engine's row after its tag has moved, and then
// only its digest, as a version of the service without digests would.
func TestRebuiltRowKeepsItsImage(t *testing.T) {
	needRegistry(t)
	t.Parallel()
	const prefix = "rebuilt-image/"
	g := startRegistry(t)
	v1 := g.push("t", "")
	r := harness.StartService(t, harness.Shared, harness.Docker.With(map[string]string{
		"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1",
	}))
	s := harness.OpenStores(t, harness.Shared)
	c := r.Product(t, map[string]any{"engine_image": g.image("t")})
	a := g.pinned(t, c, "a", "t")
	destroyed(t, c, "a")
	g.isPinned(t, a, "t", v1)
	g.push("t", "v2")
	for _, key := range append(s.Rows(prefix), prefix+"engine-ids/"+a.EngineID) {
		if _, err := s.Consul.KV().Delete(key, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Consul.KV().Put(&consul.KVPair{Key: prefix + "changes/00", Value: []byte("x")}, nil); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the engine is back", func() error {
		e, err := c.Engine(t.Context(), "a")
		if err == nil && e.Status != "running" {
			err = fmt.Errorf("%+v", e)
		}
		a = e
		return err
	})
	g.isPinned(t, a, "t", v1)
	g.isPinned(t, again(t, c, "a"), "t", v1)
	rows, err := s.Engines(prefix)
	if err != nil || len(rows) != 1 || rows[0].Digest != v1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	rows[0].Digest = ""
	s.PutRow(prefix, rows[0])
	g.isPinned(t, again(t, c, "a"), "t", v1)
}
