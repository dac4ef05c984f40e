package client

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

// TestRespondAsync: the header that is sent, and the result of a response before the end.
func TestRespondAsync(t *testing.T) {
	prefers := ""
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		prefers = r.Header.Get("Prefer")
		w.Header().Set("Location", "/engines/u")
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write([]byte(`{"engine_id": "e", "user_id": "u", "status": "provisioning", "operation": {"id": "o", "kind": "provision", "step": "s", "began_at": "2026-01-02T03:04:05Z"}}`))
	})
	ctx := RespondAsync(t.Context(), 1500*time.Millisecond)
	_, provision := c.Provision(ctx, "u", "")
	_, start := c.Start(ctx, "u")
	_, stop := c.Stop(ctx, "u")
	_, rotate := c.RotateKey(ctx, "u")
	_, destroy := c.Destroy(ctx, "u")
	_, admit := c.Admit(ctx, "u", AdmitOptions{AutoProvision: true})
	_, snapshot := c.Snapshot(ctx, "u", "")
	_, restore := c.Restore(ctx, "u", "")
	_, fork := c.Fork(ctx, "u", "v", "")
	_, imported := c.Import(ctx, "e", "")
	for name, err := range map[string]error{"import": imported, "snapshot": snapshot, "restore": restore, "fork": fork, "provision": provision, "start": start, "stop": stop, "rotate": rotate, "destroy": destroy, "admit": admit} {
		var begun *UnderWay
		if !errors.As(err, &begun) || begun.Engine.EngineID != "e" || begun.Engine.Operation == nil || begun.Engine.Operation.Kind != "provision" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if want := "respond-async, wait=2"; prefers != want {
		t.Errorf("sent %q, want %q", prefers, want)
	}
	if _, err := c.Status(ctx); err != nil || prefers != "" {
		t.Errorf("a read sends %q, %v", prefers, err)
	}
}
