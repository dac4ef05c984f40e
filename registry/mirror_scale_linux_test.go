package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

// manyRows is the number of engines that the view of a replica is designed for.
const manyRows = 10_000

// uuid returns an id in the form of Nomad's.
func uuid() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	h := hex.EncodeToString(b)
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// fullRow returns the row of a running engine, as after a provision.
func fullRow(product string, n int) *engine.Row {
	id, now := newName(), time.Now().UTC()
	return &engine.Row{
		EngineID: id, ProductID: product, ProductSlug: "some-product", UserID: fmt.Sprintf("user-%06d@example.com", n),
		State: engine.Running, Desired: engine.Running, Image: "registry.example.com/engines/engine:1.2.3", Resources: engine.Resources{CPUMHz: 100, MemoryMB: 256},
		KeyVersion: 1, EnvVersion: 1, NodeID: uuid(), VolumeID: uuid(), VolumePath: "/opt/nomad/host_volumes/" + uuid(), AllocID: uuid(),
		URL: fmt.Sprintf("http://10.0.%d.%d:%d", n%250, n%251, 20000+n%10000), RunningSince: now, CreatedAt: now, LastHealthAt: now,
	}
}

// fillRows writes rows of a product to Consul, one transaction's worth at a time.
func fillRows(t testing.TB, s *Store, product string, n int) {
	t.Helper()
	var ops consul.KVTxnOps
	for i := range n {
		e := fullRow(product, i)
		ops = append(ops, &consul.KVTxnOp{Verb: consul.KVSet, Key: s.engineKey(product, e.UserID), Value: encode(e)}, s.changed(e))
		if len(ops) == 128 || i == n-1 {
			if _, _, err := s.txn(t.Context(), ops); err != nil {
				t.Fatal(err)
			}
			ops = nil
		}
	}
}

// heap returns the heap in use after a garbage collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// mirroredBytes returns the memory per row of a view with this many rows.
func mirroredBytes(tb testing.TB, rows int) float64 {
	tb.Helper()
	s := &Store{}
	m := s.NewMirror(hclog.NewNullLogger())
	before := heap()
	for i := range rows {
		e := fullRow("some-product-id-of-26-chars", i)
		// As read from Consul.
		read, err := s.decodeEngine(storedAt(s.engineKey(e.ProductID, e.UserID), encode(e), uint64(i+1)))
		if err != nil {
			tb.Fatal(err)
		}
		m.put(rowName(e.ProductID, e.UserID), read)
	}
	held := heap() - before
	runtime.KeepAlive(m)
	return float64(held) / float64(rows)
}

// TestMirrorMemory: the view of 10,000 engines takes at most 2 KiB for each.
func TestMirrorMemory(t *testing.T) {
	const most = 2 << 10
	if got := mirroredBytes(t, manyRows); got > most {
		t.Errorf("%.0f bytes per engine, want at most %d", got, most)
	}
}

func BenchmarkMirrorMemory(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(mirroredBytes(b, manyRows), "B/engine")
	}
}

// BenchmarkMirrorColdStart measures how long a replica takes from an empty view to a
// complete one of 10,000 engines.
func BenchmarkMirrorColdStart(b *testing.B) {
	s := New(consulClient(b), "b/"+newName()+"/")
	fillRows(b, s, "p", manyRows)
	for b.Loop() {
		m, stop := follow(New(consulClient(b), s.prefix))
		<-m.Synced()
		if got := len(m.All()); got != manyRows {
			b.Errorf("%d rows, want %d", got, manyRows)
		}
		b.StopTimer()
		stop()
		b.StartTimer()
	}
}

// countedReads counts the reads below each prefix of the keys.
type countedReads struct {
	next  http.RoundTripper
	below string

	mu    sync.Mutex
	reads map[string]int
}

func (c *countedReads) RoundTrip(r *http.Request) (*http.Response, error) {
	if name, found := strings.CutPrefix(r.URL.Path, "/v1/kv/"+c.below); found {
		c.mu.Lock()
		c.reads[name]++
		c.mu.Unlock()
	}
	return c.next.RoundTrip(r)
}

// take returns the reads since its last call.
func (c *countedReads) take() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	reads := c.reads
	c.reads = map[string]int{}
	return reads
}

// TestMirrorListsOneShard: a change of one row by another replica costs one list of its
// shard, and no list of the fleet.
func TestMirrorListsOneShard(t *testing.T) {
	at := prefix(t)
	r := join(t, at)
	p := r.product(t, nil)
	fillRows(t, r.Store, p.ProductID, 1000)
	e := r.claim(t, p, "the-one")

	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	counted := &countedReads{next: transport, below: at + "engines/", reads: map[string]int{}}
	client, err := consul.NewClient(&consul.Config{Address: agent.addr, HttpClient: &http.Client{Transport: counted}})
	if err != nil {
		t.Fatal(err)
	}
	m := mirrorOf(t, New(client, at))
	if got := counted.take(); len(got) != len(mirrorParts) {
		t.Fatalf("the first list read %v", got)
	}
	for _, state := range []engine.State{engine.Running, engine.Stopped} {
		e.State = state
		if err := r.Update(context.Background(), e); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the view has the change", func() error {
			if row := m.ByID(e.EngineID); row == nil || row.State != state {
				return errors.New("not yet")
			}
			return nil
		})
		if diff := cmp.Diff(map[string]int{shard(p.ProductID, e.UserID) + "/": 1}, counted.take()); diff != "" {
			t.Errorf("reads after one change (-want +got):\n%s", diff)
		}
	}
	if got := len(m.All()); got != 1001 {
		t.Errorf("the view has %d rows", got)
	}
}

// TestMirrorAfterRestore: a Consul that was restored from a snapshot has older rows with
// lower indexes, and they are right; also if a write after the restore, which raises the
// index of all, is seen first.
func TestMirrorAfterRestore(t *testing.T) {
	for _, written := range []bool{false, true} {
		t.Run(fmt.Sprintf("Written=%v", written), func(t *testing.T) {
			at := prefix(t)
			r := join(t, at)
			p := r.product(t, nil)
			e := r.claim(t, p, "user")
			s := New(consulClient(t), at)
			m := mirrorOf(t, s)
			snapshot, _, err := r.client.Snapshot().Save(&consul.QueryOptions{Token: management})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = snapshot.Close() }()
			e.State = engine.Running
			if err := r.Update(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			later := r.claim(t, p, "later")
			eventually(t, "the view has both", func() error {
				if row := m.ByID(e.EngineID); row == nil || row.State != engine.Running || m.ByID(later.EngineID) == nil {
					return errors.New("not yet")
				}
				return nil
			})
			if err := m.Confirm(t.Context()); err != nil {
				t.Errorf("before the restore: %v", err)
			}
			if err := r.client.Snapshot().Restore(&consul.WriteOptions{Token: management}, snapshot); err != nil {
				t.Fatal(err)
			}
			if written {
				if _, err := r.client.KV().Put(&consul.KVPair{Key: at + "changes/" + shard(p.ProductID, "another")}, nil); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the view is as it was", func() error {
				if row := m.ByID(e.EngineID); row == nil || row.State != engine.Provisioning || m.ByID(later.EngineID) != nil {
					return fmt.Errorf("the row is %+v", row)
				}
				return nil
			})
			if why, _ := s.WentBack(); why == "" {
				t.Error("it is not reported")
			}
			if err := m.Confirm(t.Context()); err != nil {
				t.Errorf("known: %v", err)
			}
		})
	}
}
