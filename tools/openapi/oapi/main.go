// Command oapi takes one engine through its life with the client that oapi-codegen
// generates from docs/openapi.yaml.
//
// Usage: oapi USER. The environment has ORCH_URL and ORCH_PLATFORM_KEY.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/septemberai/orch/tools/openapi/oapi/api"
)

//go:generate mkdir -p api
//go:generate go tool oapi-codegen -generate types,client -package api -o api/api.go ../../../docs/openapi.yaml

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: oapi USER")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, user string) error {
	c, err := api.NewClientWithResponses(os.Getenv("ORCH_URL"), api.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
		r.Header.Set("X-Platform-Key", os.Getenv("ORCH_PLATFORM_KEY"))
		return nil
	}))
	if err != nil {
		return err
	}
	made, err := c.ProvisionWithResponse(ctx, nil, api.ProvisionRequest{UserId: user})
	if err != nil || made.JSON200 == nil {
		return failed("provision", made, err)
	}
	admission, err := c.AdmitWithResponse(ctx, user, nil, api.AdmitRequest{})
	if err != nil || admission.JSON200 == nil {
		return failed("admit", admission, err)
	}
	admitted, err := admission.JSON200.AsAdmitted()
	if err != nil || !bool(admitted.Admitted) || admitted.Engine.EngineId != made.JSON200.EngineId || *admitted.Engine.ApiKey != made.JSON200.ApiKey {
		return failed("admit", admission, err)
	}
	shown, err := c.GetEngineWithResponse(ctx, user, nil)
	if err != nil || shown.JSON200 == nil || shown.JSON200.Status != api.StateRunning || shown.JSON200.UserId != user || shown.JSON200.LastOperation.Outcome != "ok" {
		return failed("engine", shown, err)
	}
	running, limit := api.StateRunning, 10
	list, err := c.ListEnginesWithResponse(ctx, &api.ListEnginesParams{Status: &running, Limit: &limit})
	if err != nil || list.JSON200 == nil || list.JSON200.Total != 1 || list.JSON200.Engines[0].UserId != user {
		return failed("list", list, err)
	}
	if stopped, err := c.StopEngineWithResponse(ctx, user, nil, api.Empty{}); err != nil || stopped.JSON200 == nil {
		return failed("stop", stopped, err)
	}
	wake := true
	admission, err = c.AdmitWithResponse(ctx, user, nil, api.AdmitRequest{AutoWake: &wake})
	if err != nil || admission.JSON200 == nil {
		return failed("admit while it is stopped", admission, err)
	}
	if denied, err := admission.JSON200.AsDenied(); err != nil || bool(denied.Admitted) || denied.Reason != api.EngineStopped {
		return failed("admit while it is stopped", admission, err)
	}
	if started, err := c.StartEngineWithResponse(ctx, user, nil, api.Empty{}); err != nil || started.JSON200 == nil {
		return failed("start", started, err)
	}
	key := "k"
	rotated, err := c.RotateKeyWithResponse(ctx, user, &api.RotateKeyParams{IdempotencyKey: &key}, api.Empty{})
	if err != nil || rotated.JSON200 == nil || rotated.JSON200.NewApiKey == made.JSON200.ApiKey {
		return failed("rotate-key", rotated, err)
	}
	destroyed, err := c.DestroyEngineWithResponse(ctx, user, nil, api.Empty{})
	if err != nil || destroyed.JSON200 == nil || destroyed.JSON200.EngineId != made.JSON200.EngineId {
		return failed("destroy", destroyed, err)
	}
	shown, err = c.GetEngineWithResponse(ctx, user, nil)
	if err != nil || shown.JSON404 == nil || shown.JSON404.Error.Code != api.ENGINENOTFOUND {
		return failed("engine after its end", shown, err)
	}
	return nil
}

// failed says what was wrong with a response.
func failed(step string, got any, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return fmt.Errorf("%s: got %+v", step, got)
}
