package registry

import (
	"errors"
	"net/http"
	"testing"

	consul "github.com/hashicorp/consul/api"
)

// Ping requests what the service needs with the service's own token, and distinguishes a
// Consul that refuses the token from an unreachable one.
func TestPing(t *testing.T) {
	at := prefix(t)
	if err := New(consulClient(t), at).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	pinged := func(address, token string) error {
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		cfg := &consul.Config{Address: address, Token: token, Transport: transport}
		c, err := consul.NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		cfg.HttpClient.Transport = RawAnswers(transport)
		return New(c, at).Ping(t.Context())
	}
	tokens := agent.client.ACL()
	as := (&consul.WriteOptions{Token: management}).WithContext(t.Context())
	if _, _, err := tokens.PolicyCreate(&consul.ACLPolicy{Name: "no-keys", Rules: `key_prefix "" { policy = "deny" }`}, as); err != nil {
		t.Fatal(err)
	}
	token, _, err := tokens.TokenCreate(&consul.ACLToken{Policies: []*consul.ACLTokenPolicyLink{{Name: "no-keys"}}}, as)
	if err != nil {
		t.Fatal(err)
	}
	if err := pinged(agent.addr, token.SecretID); !errors.Is(err, ErrDenied) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("without a right to its keys: %v", err)
	}
	if _, err := tokens.TokenDelete(token.AccessorID, as); err != nil {
		t.Fatal(err)
	}
	if err := pinged(agent.addr, "c0ffee00-0000-0000-0000-000000000000"); !errors.Is(err, ErrDenied) {
		t.Errorf("with a deleted token: %v", err)
	}
	if err := pinged("127.0.0.1:1", ""); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) {
		t.Errorf("of an unreachable one: %v", err)
	}
}
