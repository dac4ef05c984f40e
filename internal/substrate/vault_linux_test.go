package substrate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	vault "github.com/hashicorp/vault/api"
)

// TestVaultSecrets: a version of a secret is written only over the version that the call
// names, and is the next one.
func TestVaultSecrets(t *testing.T) {
	t.Parallel()
	s := stack(t, false)
	client, err := vault.NewClient(&vault.Config{Address: s.VaultAddr, HttpClient: webClient(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	client.SetToken(s.VaultOrchToken)
	client.SetNamespace("")
	compareAndSet(t, &secret{kv: client.KVv2("orch"), path: "engines/substrate"})
}

// secret is a secret of one item; its index is its version.
type secret struct {
	kv   *vault.KVv2
	path string
}

func (s *secret) read(ctx context.Context) (uint64, string, error) {
	held, err := s.kv.Get(ctx, s.path)
	if errors.Is(err, vault.ErrSecretNotFound) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", err
	}
	return uint64(held.VersionMetadata.Version), fmt.Sprint(held.Data["key"]), nil
}

func (s *secret) write(ctx context.Context, at uint64, value string) (uint64, error) {
	written, err := s.kv.Put(ctx, s.path, map[string]any{"key": value}, vault.WithCheckAndSet(int(at)))
	var refused *vault.ResponseError
	if errors.As(err, &refused) && refused.StatusCode == http.StatusBadRequest && strings.Contains(err.Error(), "check-and-set") {
		return 0, errRefused
	}
	if err != nil {
		return 0, err
	}
	if version := uint64(written.VersionMetadata.Version); version != at+1 {
		return 0, fmt.Errorf("version %d was written over version %d", version, at)
	}
	return at + 1, nil
}
