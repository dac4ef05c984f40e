package registry

import (
	"errors"
	"net/http"
	"testing"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

// What Consul hides from the service's token does not count as missing, and a change that it
// refuses does not count as a conflict.
func TestDenied(t *testing.T) {
	at := prefix(t)
	whole := join(t, at)
	product := whole.product(t, nil)
	whole.claim(t, product, "u")
	for name, tc := range map[string]struct {
		rules string
		calls map[string]func(*Store) error
	}{
		"hidden": {`key_prefix "" { policy = "deny" }`, map[string]func(*Store) error{
			"all rows": func(s *Store) error { _, _, err := s.Engines(t.Context()); return err },
			"a list":   func(s *Store) error { _, err := s.Quarantine(t.Context()); return err },
			"ids":      func(s *Store) error { _, err := s.PoolIDs(t.Context()); return err },
			"a row":    func(s *Store) error { _, err := s.Engine(t.Context(), product.ProductID, "u"); return err },
			"a call's row": func(s *Store) error {
				_, _, err := s.Lookup(t.Context(), product.PlatformKeyHash, product.ProductID, "u")
				return err
			},
			"a count": func(s *Store) error { return s.recount(t.Context(), product.ProductID, 0) },
			"changes": func(s *Store) error {
				_, err := s.NewMirror(hclog.NewNullLogger()).changesAt(t.Context(), consistent(t.Context()))
				return err
			},
		}},
		"partly hidden": {`key_prefix "` + at + enginesBelow + `" { policy = "deny" }`, map[string]func(*Store) error{
			"all rows": func(s *Store) error { _, _, err := s.Engines(t.Context()); return err },
			"a call's row": func(s *Store) error {
				_, _, err := s.Lookup(t.Context(), product.PlatformKeyHash, product.ProductID, "u")
				return err
			},
		}},
		"read only": {`key_prefix "" { policy = "read" }`, map[string]func(*Store) error{
			"a change": func(s *Store) error {
				_, _, err := s.txn(t.Context(), consul.KVTxnOps{{Verb: consul.KVCAS, Key: at + "x"}})
				return err
			},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := storeWith(t, at, tc.rules)
			for what, call := range tc.calls {
				err := call(s)
				if !errors.Is(err, ErrDenied) || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrExists) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

// TestUnknownToken: a token that does not exist, such as one that has expired, is refused by
// every call. A replica with it has no session for that reason, also if it had one before.
func TestUnknownToken(t *testing.T) {
	s := storeAs(t, prefix(t), uuid())
	replica := s.Join(hclog.NewNullLogger())
	wantDenied := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrDenied) || !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := s.get(t.Context(), "x")
	wantDenied("a read", err)
	_, err = s.list(t.Context(), "x/")
	wantDenied("a list", err)
	_, _, err = s.txn(t.Context(), consul.KVTxnOps{{Verb: consul.KVCAS, Key: s.prefix + "x"}})
	wantDenied("a transaction", err)
	for what, session := range map[string]string{"a new session": "", "the renewal of a session": uuid()} {
		replica.session = session
		err := replica.keep(t.Context())
		wantDenied(what, err)
		replica.note(err)
		_, err = s.sessionCheck()
		if session == "" {
			wantDenied("a fenced change", err)
		}
		if err := replica.Absent(); !errors.Is(err, ErrNoSession) {
			t.Errorf("absent because of %v", err)
		}
	}
	if replica.note(nil); errors.Is(replica.Absent(), ErrDenied) {
		t.Error("what Consul refused once is kept")
	}
}

// storeWith returns a store whose token has these rules.
func storeWith(t *testing.T, at, rules string) *Store {
	t.Helper()
	tokens := agent.client.ACL()
	as := (&consul.WriteOptions{Token: management}).WithContext(t.Context())
	policy, _, err := tokens.PolicyCreate(&consul.ACLPolicy{Name: "rules-" + newName(), Rules: rules}, as)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := tokens.TokenCreate(&consul.ACLToken{Policies: []*consul.ACLTokenPolicyLink{{ID: policy.ID}}}, as)
	if err != nil {
		t.Fatal(err)
	}
	return storeAs(t, at, token.SecretID)
}

// storeAs returns a store with a token.
func storeAs(t *testing.T, at, token string) *Store {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	cfg := &consul.Config{Address: agent.addr, Token: token, Transport: transport}
	c, err := consul.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.HttpClient.Transport = RawAnswers(transport)
	return New(c, at)
}
