package harness

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/registry"
)

// Stores accesses the stores of a service, with root's tokens.
type Stores struct {
	T      *testing.T
	stack  *devstack.Stack
	Nomad  *nomad.Client
	Consul *consul.Client
	Vault  *vault.Client
}

// OpenStores returns access to the stores of a stack.
func OpenStores(t *testing.T, s *devstack.Stack) *Stores {
	t.Helper()
	n, err := nomad.NewClient(s.NomadConfig())
	if err != nil {
		t.Fatal(err)
	}
	c, err := consul.NewClient(s.ConsulConfig())
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.VaultClient()
	if err != nil {
		t.Fatal(err)
	}
	return &Stores{t, s, n, c, v}
}

// Engines reads the rows of a deployment.
func (s *Stores) Engines(prefix string) ([]*engine.Row, error) {
	pairs, _, err := s.Consul.KV().List(prefix+"engines/", nil)
	if err != nil {
		return nil, err
	}
	var rows []*engine.Row
	for _, pair := range pairs {
		row := new(engine.Row)
		if err := json.Unmarshal(pair.Value, row); err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// Rows lists the keys of the rows of a deployment's engines.
func (s *Stores) Rows(prefix string) []string {
	s.T.Helper()
	keys, _, err := s.Consul.KV().Keys(prefix+"engines/", "", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	return keys
}

// ErrRowChanged means that a row has changed since it was read: read it and write it again.
var ErrRowChanged = errors.New("the row changed meanwhile")

// Write replaces a row, unless it has changed ([ErrRowChanged]), and notifies the replicas'
// views.
func (s *Stores) Write(prefix string, row *consul.KVPair) error {
	shard, _, _ := strings.Cut(strings.TrimPrefix(row.Key, prefix+"engines/"), "/")
	ok, _, _, err := s.Consul.KV().Txn(consul.KVTxnOps{
		{Verb: consul.KVCAS, Key: row.Key, Value: row.Value, Index: row.ModifyIndex},
		{Verb: consul.KVSet, Key: prefix + "changes/" + shard, Value: []byte(time.Now().String())},
	}, nil)
	if err == nil && !ok {
		err = ErrRowChanged
	}
	return err
}

// Edit changes an engine's row in the registry directly, again if the service changes it
// meanwhile.
func (s *Stores) Edit(prefix, user string, change func(map[string]any)) {
	s.T.Helper()
	Eventually(s.T, "the row of "+user+" is changed", func() error {
		pairs, _, err := s.Consul.KV().List(prefix+"engines/", nil)
		if err != nil {
			s.T.Fatal(err)
		}
		for _, p := range pairs {
			row := map[string]any{}
			if err := json.Unmarshal(p.Value, &row); err != nil {
				s.T.Fatal(err)
			}
			if row["user_id"] != user {
				continue
			}
			change(row)
			if p.Value, err = json.Marshal(row); err != nil {
				s.T.Fatal(err)
			}
			if err = s.Write(prefix, p); err != nil && !errors.Is(err, ErrRowChanged) {
				s.T.Fatalf("row of %s: %v", user, err)
			}
			return err
		}
		s.T.Fatalf("no row of %s", user)
		return nil
	})
}

// PutRow writes a row, and its index, without the service.
func (s *Stores) PutRow(prefix string, row *engine.Row) {
	s.T.Helper()
	key := RowNameOf(row)
	value, err := json.Marshal(row)
	if err != nil {
		s.T.Fatal(err)
	}
	for k, v := range map[string][]byte{"engines/" + key: value, "engine-ids/" + row.EngineID: []byte("engines/" + key), "changes/" + key[:2]: []byte(row.EngineID + "@hand")} {
		if _, err := s.Consul.KV().Put(&consul.KVPair{Key: prefix + k, Value: v}, nil); err != nil {
			s.T.Fatal(err)
		}
	}
}

// RowNameOf returns the name of a row below engines/.
func RowNameOf(row *engine.Row) string {
	sum := sha256.Sum256([]byte(row.ProductID + "\x00" + row.UserID))
	return hex.EncodeToString(sum[:1]) + "/" + row.ProductID + "/" + base64.RawURLEncoding.EncodeToString([]byte(row.UserID))
}

// Leader returns the id of the leading replica, or "".
func (s *Stores) Leader(prefix string) (string, error) {
	pair, _, err := s.Consul.KV().Get(prefix+"leader", nil)
	if err != nil || pair == nil || pair.Session == "" {
		return "", err
	}
	return string(pair.Value), nil
}

// EndSession ends the session of one replica, as Consul does after its TTL.
func (s *Stores) EndSession(prefix, replica string) {
	s.T.Helper()
	pair, _, err := s.Consul.KV().Get(prefix+"replicas/"+replica, nil)
	if err != nil || pair == nil {
		s.T.Fatalf("replica %s: %v, %v", replica, pair, err)
	}
	if _, err := s.Consul.Session().Destroy(pair.Session, nil); err != nil {
		s.T.Fatal(err)
	}
}

// EndSessions ends all sessions, as Consul does when the TTLs of dead replicas have passed.
func (s *Stores) EndSessions(prefix string) {
	s.T.Helper()
	pairs, _, err := s.Consul.KV().List(prefix+"replicas/", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, pair := range pairs {
		if _, err := s.Consul.Session().Destroy(pair.Session, nil); err != nil {
			s.T.Fatal(err)
		}
	}
}

// MountWith returns the mount in Vault that contains an engine's secret, or "".
func (s *Stores) MountWith(engineID string) string {
	s.T.Helper()
	for _, mount := range s.stack.Mounts() {
		secret, err := s.Vault.Logical().Read(mount + "/metadata/engines/" + engineID)
		if err != nil {
			s.T.Fatal(err)
		}
		if secret != nil {
			return mount
		}
	}
	return ""
}

// Deployment returns the record of a deployment in its registry.
func (s *Stores) Deployment(prefix string) *registry.Deployment {
	s.T.Helper()
	pair, _, err := s.Consul.KV().Get(prefix+"deployment", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	d := new(registry.Deployment)
	if pair != nil {
		if err := json.Unmarshal(pair.Value, d); err != nil {
			s.T.Fatal(err)
		}
	}
	return d
}

// idPrefix returns the prefix of a deployment's engine_ids.
func (s *Stores) idPrefix(prefix string) string {
	s.T.Helper()
	id := s.Deployment(prefix).ID
	return id[:min(6, len(id))]
}

// AwaitReported waits until an engine's node has reported to the servers that the engine
// runs, which can be a second after it responds.
func (s *Stores) AwaitReported(engineID string) {
	s.T.Helper()
	Eventually(s.T, "the node has reported the engine", func() error {
		allocs, _, err := s.Nomad.Jobs().Allocations(engine.JobID(engineID), false, nil)
		if err != nil || len(allocs) != 1 || allocs[0].ClientStatus != nomad.AllocClientStatusRunning {
			return fmt.Errorf("%d allocations, %w", len(allocs), err)
		}
		return nil
	})
}

// BrainKey returns the identity of age that decrypts an engine's snapshots, in whatever mount
// it is, or "".
func (s *Stores) BrainKey(engineID string) string {
	s.T.Helper()
	mounts, err := s.Vault.Sys().ListMounts()
	if err != nil {
		s.T.Fatal(err)
	}
	for mount := range mounts {
		secret, err := s.Vault.Logical().Read(mount + "data/brains/" + engineID)
		if err != nil || secret == nil {
			continue
		}
		if data, ok := secret.Data["data"].(map[string]any); ok {
			identity, _ := data["identity"].(string)
			return identity
		}
	}
	return ""
}
