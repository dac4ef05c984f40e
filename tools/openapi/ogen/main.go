// Command ogen takes one engine through its life with the client that ogen generates from
// docs/openapi.yaml.
//
// Usage: ogen USER. The environment has ORCH_URL and ORCH_PLATFORM_KEY.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/ogen-go/ogen/ogenerrors"

	"github.com/septemberai/orch/tools/openapi/ogen/api"
)

//go:generate go tool ogen --target api --package api --clean ../../../docs/openapi.yaml

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: ogen USER")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type keys struct{}

func (keys) PlatformKey(context.Context, api.OperationName) (api.PlatformKey, error) {
	return api.PlatformKey{APIKey: os.Getenv("ORCH_PLATFORM_KEY")}, nil
}

func (keys) AdminKey(context.Context, api.OperationName) (api.AdminKey, error) {
	return api.AdminKey{}, ogenerrors.ErrSkipClientSecurity
}

// is converts a response to the type that it should have.
func is[T any](got any, err error) (T, error) {
	want, ok := got.(T)
	if err == nil && !ok {
		err = fmt.Errorf("got %#v, want %T", got, want)
	}
	return want, err
}

func run(ctx context.Context, user string) error {
	c, err := api.NewClient(os.Getenv("ORCH_URL"), keys{})
	if err != nil {
		return err
	}
	made, err := is[*api.ProvisionedHeaders](c.Provision(ctx, &api.ProvisionRequest{UserID: user}, api.ProvisionParams{}))
	if err != nil {
		return fmt.Errorf("provision: %w", err)
	}
	admission, err := is[*api.AdmissionHeaders](c.Admit(ctx, api.OptAdmitRequest{}, api.AdmitParams{UserID: user}))
	if err != nil {
		return fmt.Errorf("admit: %w", err)
	}
	admitted, ok := admission.Response.GetAdmitted()
	if !ok || admitted.Engine.EngineID != made.Response.EngineID || admitted.Engine.APIKey.Value != made.Response.APIKey {
		return fmt.Errorf("admit: got %+v of %+v", admission.Response, made.Response)
	}
	shown, err := is[*api.ShownEngineHeaders](c.GetEngine(ctx, api.GetEngineParams{UserID: user}))
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	if shown.Response.Status != api.StateRunning || shown.Response.UserID != user || shown.Response.LastOperation.Value.Outcome != "ok" {
		return fmt.Errorf("engine: got %+v", shown.Response)
	}
	list, err := is[*api.EngineListHeaders](c.ListEngines(ctx, api.ListEnginesParams{Status: api.NewOptState(api.StateRunning), Limit: api.NewOptInt(10)}))
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if list.Response.Total != 1 || list.Response.Engines[0].UserID != user {
		return fmt.Errorf("list: got %+v", list.Response)
	}
	// The service would accept no body, too; Prism wants one where the content type is JSON.
	none := &api.Empty{}
	if _, err := is[*api.StoppedHeaders](c.StopEngine(ctx, none, api.StopEngineParams{UserID: user})); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	admission, err = is[*api.AdmissionHeaders](c.Admit(ctx, api.NewOptAdmitRequest(api.AdmitRequest{AutoWake: api.NewOptBool(true)}), api.AdmitParams{UserID: user}))
	if err != nil {
		return fmt.Errorf("admit: %w", err)
	}
	if denied, ok := admission.Response.GetDenied(); !ok || denied.Reason != api.DeniedReasonEngineStopped {
		return fmt.Errorf("admit while it is stopped: got %+v", admission.Response)
	}
	if _, err := is[*api.StartedHeaders](c.StartEngine(ctx, none, api.StartEngineParams{UserID: user})); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	rotated, err := is[*api.RotatedHeaders](c.RotateKey(ctx, none, api.RotateKeyParams{UserID: user, IdempotencyKey: api.NewOptString("k")}))
	if err != nil {
		return fmt.Errorf("rotate-key: %w", err)
	}
	if rotated.Response.NewAPIKey == made.Response.APIKey {
		return fmt.Errorf("rotate-key: the key is the same")
	}
	destroyed, err := is[*api.DestroyedHeaders](c.DestroyEngine(ctx, none, api.DestroyEngineParams{UserID: user}))
	if err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	if destroyed.Response.EngineID != made.Response.EngineID {
		return fmt.Errorf("destroy: got %+v", destroyed.Response)
	}
	failed, err := is[*api.GetEngineNotFound](c.GetEngine(ctx, api.GetEngineParams{UserID: user}))
	if err != nil {
		return fmt.Errorf("engine after its end: %w", err)
	}
	if failed.Response.Error.Code != api.ErrorCodeENGINENOTFOUND || failed.Response.Error.RequestID != failed.XRequestID {
		return fmt.Errorf("engine after its end: got %+v", failed.Response)
	}
	return nil
}
