package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

func TestAsError(t *testing.T) {
	const secret = "10.1.2.3:4646 sk-sept-secret"
	for _, c := range []struct {
		name  string
		cause error
		want  engine.Code
		retry bool
	}{
		{"Consul", registry.ErrUnavailable, engine.BackendUnavailable, true},
		{"NoSession", registry.ErrNoSession, engine.BackendUnavailable, true},
		{"Nomad", cluster.ErrUnavailable, engine.BackendUnavailable, true},
		{"Vault", secrets.ErrUnavailable, engine.BackendUnavailable, true},
		{"ConsulDenied", registry.ErrDenied, engine.BackendRefused, false},
		{"NomadDenied", cluster.ErrDenied, engine.BackendRefused, false},
		{"VaultDenied", secrets.ErrDenied, engine.BackendRefused, false},
		{"AuditDenied", audit.ErrDenied, engine.BackendRefused, false},
		{"VolumePlugin", &cluster.PluginError{Said: "no quotas"}, engine.BackendError, false},
		{"NomadRejected", cluster.ErrRejected, engine.BackendError, false},
		{"VolumeInUse", cluster.ErrInUse, engine.BackendError, false},
		{"Row", registry.ErrConflict, engine.EngineBusy, true},
		{"Job", cluster.ErrConflict, engine.EngineBusy, true},
		{"Key", secrets.ErrConflict, engine.EngineBusy, true},
		{"DeletedBrainKey", secrets.ErrDeleted, engine.BackendError, false},
		{"Cancelled", context.Canceled, engine.BackendUnavailable, true},
		{"Late", context.DeadlineExceeded, engine.BackendUnavailable, true},
		{"Unknown", errors.New("boom"), engine.Internal, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cause := fmt.Errorf("call to %s: %w", secret, c.cause)
			got := AsError(cause)
			if got.Code != c.want || (got.RetryAfter > 0) != c.retry {
				t.Errorf("got %s with retry after %s, want %s", got.Code, got.RetryAfter, c.want)
			}
			if !errors.Is(got, c.cause) {
				t.Error("the log does not contain the cause")
			}
			for _, word := range strings.Fields(secret) {
				if strings.Contains(got.Message, word) {
					t.Errorf("the caller sees an internal cause: %s", got.Message)
				}
			}
		})
	}
	t.Run("Ours", func(t *testing.T) {
		mine := engine.Errorf(engine.QuotaExceeded, "full")
		if got := AsError(fmt.Errorf("claim: %w", mine)); got != mine {
			t.Errorf("got %v", got)
		}
	})
	t.Run("Nil", func(t *testing.T) {
		if got := AsError(nil); got != nil {
			t.Errorf("got %v", got)
		}
	})
}

func TestUnreadableError(t *testing.T) {
	for _, tc := range []struct {
		u    registry.Unreadable
		want string
	}{
		{registry.Unreadable{ProductID: "p"}, "the registry's record of this product is damaged"},
		{registry.Unreadable{ProductID: "p", UserID: "u"}, "the registry's record of this engine is damaged"},
		{registry.Unreadable{ProductID: "p", UserID: "u", Newer: true}, "a newer version of the service wrote the registry's record of this engine"},
	} {
		tc.u.Err = errors.New("not for the caller")
		e := AsError(fmt.Errorf("read: %w", &tc.u))
		if e.Code != engine.RecordUnreadable || e.RetryAfter == 0 || len(e.Message) < len(tc.want) || e.Message[:len(tc.want)] != tc.want {
			t.Errorf("got %v, want %q", e, tc.want)
		}
	}
}
