package registry

import "testing"

// A replica whose key was deleted creates it again, with its current session.
func TestReplicaKeyIsKept(t *testing.T) {
	r := lead(t, prefix(t))
	p := r.product(t, nil)
	session, _ := r.self.current()
	if _, err := r.client.KV().Delete(r.self.key(), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a row can be written", func() error {
		return r.Claim(t.Context(), p, newEngine(p, "user"), nil)
	})
	if now, _ := r.self.current(); now != session {
		t.Error("it has another session")
	}
	if ids, err := r.Replicas(t.Context()); err != nil || !ids[r.self.ID] {
		t.Errorf("replicas %v, %v", ids, err)
	}
}
