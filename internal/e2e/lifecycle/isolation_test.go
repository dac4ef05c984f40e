package lifecycle

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestIsolation: an engine runs under the docker runtime of its product's policy and under
// no other. Where no node has the runtime, provision and start are refused and name it. The
// runtime of the test is runc under gVisor's name, because gVisor is not installed here.
func TestIsolation(t *testing.T) {
	t.Run("raw_exec", func(t *testing.T) {
		t.Parallel()
		r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": "isolation/", "ORCH_VOLUME_POOL": "0"})
		_, err := r.Admin().RegisterProduct(t.Context(), "isolated", "Isolated", &client.Policy{Isolation: "gvisor"})
		if e := harness.WantCode(t, err, 400, "INVALID_REQUEST"); !strings.Contains(e.Message, "policy.isolation") || !strings.Contains(e.Message, "raw_exec") {
			t.Errorf("the refusal is %q", e.Message)
		}
	})
	t.Run("docker", testIsolation)
}

func testIsolation(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	dd := harness.NewDaemon(t)
	stack := harness.OwnStack(t, devstack.Config{DockerSocket: dd.Address()})
	s, ctx := harness.OpenStores(t, stack), t.Context()
	// A warm engine without isolation must not be given to a product with isolation.
	r := harness.StartService(t, stack, harness.Docker.With(map[string]string{"ORCH_VOLUME_POOL": "1", "ORCH_WARM_POOL": "1"}))
	p, err := r.Admin().RegisterProduct(ctx, "isolated", "Isolated", &client.Policy{Isolation: "gvisor"})
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
	s.AwaitWarm(r, 1)
	refused := func(when string, err error) bool {
		t.Helper()
		message := harness.WantCode(t, err, 503, "CAPACITY_EXHAUSTED").Message
		if !strings.Contains(message, `lacks the runtime "runsc"`) || !strings.Contains(message, `isolation "gvisor"`) {
			t.Logf("%s: %s", when, message)
			return false
		}
		return true
	}
	if !refused("provision", harness.ErrOf(c.Provision(ctx, "u", ""))) {
		t.Error("the refusal does not name the runtime")
	}
	_, err = c.Engine(ctx, "u")
	harness.WantCode(t, err, 404, "ENGINE_NOT_FOUND")

	dd.Configure(fmt.Sprintf(`{"runtimes": {"runsc": {"path": %q}}}`, runc))
	var e *client.Engine
	harness.Eventually(t, "Nomad knows the runtime", func() (err error) {
		e, err = c.Provision(ctx, "u", "")
		var of *client.Error
		if errors.As(err, &of) && of.Code != "CAPACITY_EXHAUSTED" {
			t.Fatal(err)
		}
		return err
	})
	runs := func(want string, constrained bool) {
		t.Helper()
		if got := dd.Inspect(e).HostConfig.Runtime; got != want {
			t.Errorf("it runs under %q, want %q", got, want)
		}
		job, _, err := s.Nomad.Jobs().Info("engine-"+e.EngineID, nil)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, by := range job.TaskGroups[0].Constraints {
			found = found || by.LTarget == "${attr.driver.docker.runtimes}" && by.Operand == "set_contains" && by.RTarget == "runsc"
		}
		if found != constrained {
			t.Errorf("its job is constrained to nodes with the runtime: %t, want %t", found, constrained)
		}
	}
	runs("runsc", true)
	harness.Remember(t, e, e.APIKey, "u")

	// A service that starts now knows the runtime, too.
	late := harness.StartService(t, stack, harness.Docker.With(map[string]string{"ORCH_CONSUL_PREFIX": "isolation-late/", "ORCH_VOLUME_POOL": "0"}))
	lc := late.Product(t, map[string]any{"isolation": "gvisor"})
	other, err := lc.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if got := dd.Inspect(other).HostConfig.Runtime; got != "runsc" {
		t.Errorf("it runs under %q", got)
	}
	if _, err := lc.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}

	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	dd.Configure(`{"runtimes": {}}`)
	node := s.ReadyNode()
	harness.Eventually(t, "Nomad knows that the runtime is gone", func() error {
		n, _, err := s.Nomad.Nodes().Info(node, nil)
		if err == nil && slices.Contains(strings.Split(n.Attributes["driver.docker.runtimes"], ","), "runsc") {
			err = errors.New("it has the runtime")
		}
		return err
	})
	harness.Eventually(t, "the service knows that the runtime is gone", func() error {
		if !refused("start", harness.ErrOf(c.Start(ctx, "u"))) {
			return errors.New("the refusal does not name the runtime")
		}
		return nil
	})
	harness.IsNow(t, c, "u", "stopped", "")

	if _, err := r.Admin().SetPolicy(ctx, p.ProductID, client.Policy{}); err != nil {
		t.Fatal(err)
	}
	started, err := c.Start(ctx, "u")
	if err != nil {
		t.Fatal(err)
	}
	e.URL = started.URL
	runs("runc", false)
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}
