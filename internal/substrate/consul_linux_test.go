package substrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
)

func consulClient(t *testing.T) *consul.Client {
	t.Helper()
	s := stack(t, false)
	client, err := consul.NewClient(&consul.Config{Address: strings.TrimPrefix(s.ConsulAddr, "http://"), HttpClient: webClient(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func consistent(ctx context.Context) *consul.QueryOptions {
	return (&consul.QueryOptions{RequireConsistent: true}).WithContext(ctx)
}

// transact returns errRefused if a transaction was refused as a whole.
func transact(ctx context.Context, kv *consul.KV, ops ...*consul.KVTxnOp) (consul.KVPairs, error) {
	ok, resp, _, err := kv.Txn(ops, consistent(ctx))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errRefused
	}
	return resp.Results, nil
}

// indexOf returns the index of a key that a transaction wrote.
func indexOf(results consul.KVPairs, key string) uint64 {
	return results[slices.IndexFunc(results, func(p *consul.KVPair) bool { return p.Key == key })].ModifyIndex
}

// TestConsulKeys: a key is changed and removed only at the index that the transaction
// names.
func TestConsulKeys(t *testing.T) {
	t.Parallel()
	compareAndSet(t, &key{kv: consulClient(t).KV(), name: "substrate/keys/one"})
}

// key is a key in Consul. Each transaction also writes a second key.
type key struct {
	kv   *consul.KV
	name string
}

func (k *key) beside() *consul.KVTxnOp {
	return &consul.KVTxnOp{Verb: consul.KVSet, Key: k.name + "-beside", Value: []byte("x")}
}

func (k *key) read(ctx context.Context) (uint64, string, error) {
	pair, _, err := k.kv.Get(k.name, consistent(ctx))
	if err != nil || pair == nil {
		return 0, "", err
	}
	return pair.ModifyIndex, string(pair.Value), nil
}

func (k *key) write(ctx context.Context, at uint64, value string) (uint64, error) {
	results, err := transact(ctx, k.kv, k.beside(), &consul.KVTxnOp{Verb: consul.KVCAS, Key: k.name, Index: at, Value: []byte(value)})
	if err != nil {
		return 0, err
	}
	return indexOf(results, k.name), nil
}

func (k *key) remove(ctx context.Context, at uint64) error {
	_, err := transact(ctx, k.kv, append(deleteAt(k.name, at), k.beside())...)
	return err
}

// deleteAt removes a key only if it is still at this index.
func deleteAt(key string, index uint64) []*consul.KVTxnOp {
	return []*consul.KVTxnOp{{Verb: consul.KVCheckIndex, Key: key, Index: index}, {Verb: consul.KVDelete, Key: key}}
}

// TestConsulClaims: if several writers remove one key at its index and write another key in
// the same transaction, exactly one succeeds. With delete-cas all succeed.
func TestConsulClaims(t *testing.T) {
	t.Parallel()
	kv := consulClient(t).KV()
	const bursts = 30
	// claims returns how many of the writers got the one key of each burst.
	claims := func(t *testing.T, name string, claim func(key string, index uint64) []*consul.KVTxnOp) (most, least int) {
		least = writers
		for burst := range bursts {
			pooled := fmt.Sprintf("substrate/%s/%d/pooled", name, burst)
			made, err := transact(t.Context(), kv, &consul.KVTxnOp{Verb: consul.KVCAS, Key: pooled, Value: []byte("volume")})
			if err != nil {
				t.Fatal(err)
			}
			won := make(chan struct{}, writers)
			var all sync.WaitGroup
			for w := range writers {
				all.Go(func() {
					own := &consul.KVTxnOp{Verb: consul.KVCAS, Key: fmt.Sprintf("substrate/%s/%d/row-%d", name, burst, w), Value: []byte("mine")}
					_, err := transact(t.Context(), kv, append(claim(pooled, made[0].ModifyIndex), own)...)
					switch {
					case err == nil:
						won <- struct{}{}
					case !errors.Is(err, errRefused):
						t.Error(err)
					}
				})
			}
			all.Wait()
			most, least = max(most, len(won)), min(least, len(won))
		}
		return most, least
	}
	t.Run("CheckIndexAndDelete", func(t *testing.T) {
		if most, least := claims(t, "check-index", deleteAt); most != 1 || least != 1 {
			t.Errorf("%d to %d of %d claims of one key succeeded, want 1", least, most, writers)
		}
	})
	t.Run("DeleteCAS", func(t *testing.T) {
		most, least := claims(t, "delete-cas", func(key string, index uint64) []*consul.KVTxnOp {
			return []*consul.KVTxnOp{{Verb: consul.KVDeleteCAS, Key: key, Index: index}}
		})
		t.Logf("%d to %d of %d claims of one key succeeded", least, most, writers)
		if most == 1 {
			t.Log("delete-cas now refuses to remove what is not there: check-index is not needed with this Consul")
		}
	})
}

// TestConsulSession: a write that names a session is made only while the session lives,
// however it ends.
func TestConsulSession(t *testing.T) {
	t.Parallel()
	t.Run("Destroyed", func(t *testing.T) {
		t.Parallel()
		client := consulClient(t)
		sessionEnds(t, client, "destroyed", 0, func(session string) error {
			_, err := client.Session().Destroy(session, nil)
			return err
		})
	})
	t.Run("Expired", func(t *testing.T) {
		t.Parallel()
		client := consulClient(t)
		sessionEnds(t, client, "expired", 10*time.Second, func(session string) error {
			// Nobody renews it.
			eventually(t, "the session expires", func() error {
				entry, _, err := client.Session().Info(session, consistent(t.Context()))
				if err == nil && entry != nil {
					return errors.New("it lives")
				}
				return err
			})
			return nil
		})
	})
	t.Run("Stolen", func(t *testing.T) {
		t.Parallel()
		lockMoves(t, consulClient(t))
	})
}

// newSession creates a session like those of replicas. The shortest TTL is 10 s.
func newSession(t *testing.T, client *consul.Client) string {
	t.Helper()
	session, _, err := client.Session().CreateNoChecks(&consul.SessionEntry{
		TTL: "10s", LockDelay: time.Second, Behavior: consul.SessionBehaviorDelete,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// sessionWrite writes a key while a lock is held.
func sessionWrite(ctx context.Context, kv *consul.KV, lock, session, key, value string) (uint64, error) {
	results, err := transact(ctx, kv,
		&consul.KVTxnOp{Verb: consul.KVCheckSession, Key: lock, Session: session},
		&consul.KVTxnOp{Verb: consul.KVSet, Key: key, Value: []byte(value)})
	if err != nil {
		return 0, err
	}
	return indexOf(results, key), nil
}

// sessionEnds lets writers write under a session while it ends, which takes about the given
// time. Each writes until it is refused.
func sessionEnds(t *testing.T, client *consul.Client, name string, takes time.Duration, end func(session string) error) {
	lock, row := "substrate/session/"+name+"/lock", "substrate/session/"+name+"/row"
	session := newSession(t, client)
	if ok, _, err := client.KV().Acquire(&consul.KVPair{Key: lock, Session: session}, nil); err != nil || !ok {
		t.Fatalf("the lock was not acquired: %v", err)
	}
	h := &history{began: time.Now()}
	var all sync.WaitGroup
	defer all.Wait() // at the latest when the session expires
	for w := range writers {
		all.Go(func() { writeWhileHeld(t, h, client.KV(), w, lock, session, row, max(takes/20, 5*time.Millisecond)) })
	}
	eventually(t, "all writers wrote", func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if n := h.count(held, false); n < 2*writers {
			return fmt.Errorf("%d writes", n)
		}
		return nil
	})
	if err := h.do(writers, call{kind: invalidate}, func(*call) error { return end(session) }); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	if err := h.do(0, call{kind: read}, func(c *call) error {
		pair, _, err := client.KV().Get(row, consistent(t.Context()))
		if err == nil {
			c.index, c.value = pair.ModifyIndex, string(pair.Value)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := linearizable(h.calls); err != nil {
		t.Error(err)
	}
	t.Logf("%d writes before the session ended, %d refused", h.count(held, false), h.count(held, true))
}

// writeWhileHeld writes until it is refused.
func writeWhileHeld(t *testing.T, h *history, kv *consul.KV, w int, lock, session, row string, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for n, refused := 0, false; !refused; n++ {
		err := h.do(w, call{kind: held, value: fmt.Sprintf("%d-%d", w, n)}, func(c *call) (err error) {
			c.index, err = sessionWrite(t.Context(), kv, lock, session, row, c.value)
			if refused = errors.Is(err, errRefused); refused {
				c.refused = true
				return nil
			}
			return err
		})
		if err != nil {
			t.Error(err)
			return
		}
		<-tick.C
	}
}

// lockMoves: the former holder of a lock, whose session was lost, cannot write, neither while
// nobody has the lock nor while another session has it. The new holder can write.
func lockMoves(t *testing.T, client *consul.Client) {
	const lock, row = "substrate/lead/lock", "substrate/lead/row"
	ctx, kv := t.Context(), client.KV()
	acquire := func(session string) (bool, error) {
		ok, _, err := kv.Acquire(&consul.KVPair{Key: lock, Session: session}, nil)
		return ok, err
	}
	first, second := newSession(t, client), newSession(t, client)
	if ok, err := acquire(first); err != nil || !ok {
		t.Fatalf("the lock was not acquired: %v", err)
	}
	if ok, err := acquire(second); err != nil || ok {
		t.Fatalf("the lock was acquired twice (%v)", err)
	}
	if _, err := sessionWrite(ctx, kv, lock, second, row, "second"); !errors.Is(err, errRefused) {
		t.Errorf("a session without the lock wrote: %v", err)
	}
	if _, err := sessionWrite(ctx, kv, lock, first, row, "first"); err != nil {
		t.Error(err)
	}
	if _, err := client.Session().Destroy(first, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := sessionWrite(ctx, kv, lock, first, row, "first again"); !errors.Is(err, errRefused) {
		t.Errorf("a holder that lost its session wrote while nobody has the lock: %v", err)
	}
	eventually(t, "the second has the lock", func() error {
		ok, err := acquire(second)
		if err == nil && !ok {
			err = errors.New("it does not")
		}
		return err
	})
	if _, err := sessionWrite(ctx, kv, lock, first, row, "first again"); !errors.Is(err, errRefused) {
		t.Errorf("a holder that lost its session wrote while another has the lock: %v", err)
	}
	if _, err := sessionWrite(ctx, kv, lock, second, row, "second"); err != nil {
		t.Error(err)
	}
}
