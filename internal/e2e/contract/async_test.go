package contract

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestRespondAsync: a change whose caller does not wait gets 202 as soon as it has begun.
// The engine shows it until its end, and then its outcome.
func TestRespondAsync(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "2"})
	c := r.Product(t, harness.AnyImage)
	ctx := t.Context()
	async := client.RespondAsync(ctx, 0)

	// begun fails unless a change was begun, and returns its operation.
	begun := func(kind string, err error) *client.Operation {
		t.Helper()
		var under *client.UnderWay
		if !errors.As(err, &under) {
			t.Fatalf("%s: got %v, want 202", kind, err)
		}
		if under.Engine.Operation == nil || under.Engine.Operation.Kind != kind || under.Engine.APIKey != "" {
			t.Fatalf("%s: the engine is %+v", kind, under.Engine)
		}
		return under.Engine.Operation
	}
	// ends waits for the operation's end, and fails unless it has this outcome.
	ends := func(user string, op *client.Operation, outcome string) *client.Engine {
		t.Helper()
		var e *client.Engine
		harness.Eventually(t, op.Kind+" ends", func() error {
			var err error
			if e, err = c.Engine(ctx, user); err != nil {
				t.Fatal(err)
			}
			if e.Operation != nil && e.Operation.ID != op.ID || e.Operation == nil && (e.LastOperation == nil || e.LastOperation.ID != op.ID) {
				t.Fatalf("%s: the engine is %+v", op.Kind, e)
			}
			if e.Operation != nil {
				return fmt.Errorf("it is at %s", e.Operation.Step)
			}
			return nil
		})
		last := e.LastOperation
		if last.Kind != op.Kind || last.Outcome != outcome || (last.Message != "") != (outcome != "ok") || !last.BeganAt.Equal(op.BeganAt) || last.EndedAt.Before(last.BeganAt) {
			t.Errorf("%s ended with %+v, want %s", op.Kind, last, outcome)
		}
		return e
	}

	_, err := c.Provision(async, "u", "")
	if e := ends("u", begun("provision", err), "ok"); e.Status != client.Running || e.APIKey == "" || e.URL == "" {
		t.Errorf("it is %+v", e)
	}
	old, err := c.Engine(ctx, "u")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.RotateKey(async, "u")
	if e := ends("u", begun("rotate_key", err), "ok"); e.APIKey == old.APIKey || e.APIKey == "" {
		t.Error("the key is not another one")
	}
	_, err = c.Stop(async, "u")
	if e := ends("u", begun("stop", err), "ok"); e.Status != client.Stopped {
		t.Errorf("it is %+v", e)
	}
	_, err = c.Start(async, "u")
	if e := ends("u", begun("start", err), "ok"); e.Status != client.Running {
		t.Errorf("it is %+v", e)
	}
	// A change that ends in time gets its ordinary response.
	if e, err := c.Stop(client.RespondAsync(ctx, time.Minute), "u"); err != nil || e.Status != client.Stopped {
		t.Errorf("a stop that is waited for: %+v, %v", e, err)
	}
	harness.WantCode(t, harness.ErrOf(c.Stop(async, "u")), 409, "ENGINE_NOT_RUNNING")
	harness.WantCode(t, harness.ErrOf(c.Start(async, "nobody")), 404, "ENGINE_NOT_FOUND")

	_, err = c.Admit(async, "a/b", client.AdmitOptions{AutoProvision: true})
	ends("a/b", begun("provision", err), "ok")
	if a, err := c.Admit(async, "a/b", client.AdmitOptions{AutoProvision: true}); err != nil || !a.Admitted {
		t.Errorf("an admit of what runs: %+v, %v", a, err)
	}

	// The outcome of a failed change is shown, too.
	_, err = c.Provision(async, "bad", "reference-engine.exit-at-start")
	if e := ends("bad", begun("provision", err), "ENGINE_BOOT_FAILED"); e.Status != client.Failed {
		t.Errorf("it is %+v", e)
	}

	// The raw response: its headers, and a preference with only a limit.
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, r.URL+"/engines/a%2Fb", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Platform-Key", c.PlatformKey)
	req.Header.Set("Prefer", "wait=0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 202 || resp.Header.Get("Location") != "/engines/a%2Fb" || resp.Header.Get("Preference-Applied") != "wait=0" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	for _, user := range []string{"a/b", "u", "bad"} {
		_, err := c.Destroy(async, user)
		if user != "a/b" { // it may be destroyed already
			begun("destroy", err)
		}
		harness.Eventually(t, user+" is gone", func() error { return isGone(ctx, c, user) })
	}
	if strings.Contains(r.Logs.String(), "INTERNAL_ERROR") {
		t.Error("a caller that did not wait counts as a fault")
	}
}

// isGone returns nil if a user has no engine.
func isGone(ctx context.Context, c *client.Client, user string) error {
	_, err := c.Engine(ctx, user)
	if errors.Is(err, client.ErrEngineNotFound) {
		return nil
	}
	return errors.Join(errors.New("it is there"), err)
}
