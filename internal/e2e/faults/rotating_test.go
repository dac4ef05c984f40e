package faults

import (
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/testpg"
)

// TestKeyDuringARotation pauses the replica that rotates a key after the engine has
// accepted the new key and before the row says so. Nobody gets the old key any more:
// neither from a GET, nor from a provision that is repeated with its Idempotency-Key.
func TestKeyDuringARotation(t *testing.T) {
	testpg.Need(t)
	t.Parallel()
	ctx := t.Context()
	prefix, database := "rotating/", harness.Postgres.Database(t)
	a := harness.StartFaulty(t, prefix, database, "pause rotate_key/proof/done")
	b := harness.StartFaulty(t, prefix, database, "")
	product, err := a.RegisterProduct(ctx, "rotating", "Rotating", harness.PolicyOf(t, harness.AnyImage))
	if err != nil {
		t.Fatal(err)
	}
	a.PlatformKey, b.PlatformKey = product.PlatformAPIKey, product.PlatformAPIKey
	first, err := a.Provision(ctx, laneUser, "", client.IdempotencyKey("made once"))
	if err != nil {
		t.Fatal(err)
	}
	if shown, err := b.Engine(ctx, laneUser); err != nil || shown.APIKey != first.APIKey { // and b keeps that key in memory
		t.Fatalf("before the rotation: %+v, %v", shown, err)
	}
	rotated := make(chan error, 1)
	go func() { rotated <- harness.ErrOf(a.RotateKey(ctx, laneUser)) }()
	a.AwaitPause(t)

	shown, err := b.Engine(ctx, laneUser)
	if err != nil || shown.Operation == nil || shown.Operation.Kind != "rotate_key" {
		t.Fatalf("during the rotation: %+v, %v", shown, err)
	}
	harness.KeyIs(t, first, first.APIKey, false)
	harness.KeyIs(t, shown, shown.APIKey, true)
	again, err := b.Provision(ctx, laneUser, "", client.IdempotencyKey("made once"))
	if err != nil {
		t.Fatal(err)
	}
	harness.KeyIs(t, again, again.APIKey, true)
	if err := a.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-rotated; err == nil {
		t.Error("the killed replica responded")
	}
}
