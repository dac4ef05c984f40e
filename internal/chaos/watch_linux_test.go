package chaos

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/devstack"
)

const (
	// watchEvery is the interval of reading the registry, and so the accuracy of the
	// measurements.
	watchEvery = 250 * time.Millisecond
	// doubledEvery is the interval of counting processes.
	doubledEvery = 2 * time.Second
)

// snapshot is the registry at one moment, from one read of Consul.
type snapshot struct {
	rows  map[string]*engine.Row // by engine_id
	ids   map[string]string      // engine-ids/
	quota map[string]int         // by product_id
	// pool and unreachable are the engine_ids of pooled volumes and warm engines, and of
	// volumes that wait for their node.
	pool, unreachable map[string]bool
	lead              string // the leading replica's id
}

// known reports whether parts of an engine_id may exist.
func (s *snapshot) known(id string) bool { return s.rows[id] != nil || s.pool[id] || s.unreachable[id] }

// watcher reads the registry continuously. It checks what must always be true, and
// measures.
type watcher struct {
	rig     *rig
	clients []*consul.Client

	mu       sync.Mutex
	trouble  map[string]bool
	waiting  []wait
	takeover []time.Duration
	recovery []time.Duration
	crashes  []time.Duration // from a crash to the row that shows it
	last     *snapshot
	back     bool                          // Consul is being restored: nothing agrees meanwhile
	ids      map[devstack.Component]string // of replicas, as last seen
}

// wait is an event that is measured until it happens.
type wait struct {
	since    time.Time
	owner    string // replica id that was killed
	op       string // of that replica; empty: its lead
	row      string
	crashed  bool // the engine of row crashed: its process was killed
	complete bool // all operations of the owner are listed
}

func newWatcher(r *rig) (*watcher, error) {
	w := &watcher{rig: r, trouble: map[string]bool{}, ids: map[devstack.Component]string{}}
	for _, addr := range r.ConsulAddrs {
		c, err := consul.NewClient(&consul.Config{Address: addr, Token: r.Operator().ConsulToken, HttpClient: &http.Client{
			Timeout: 3 * time.Second, Transport: &http.Transport{DialContext: dialer(500 * time.Millisecond), TLSClientConfig: r.TLS()},
		}})
		if err != nil {
			return nil, err
		}
		w.clients = append(w.clients, c)
	}
	return w, nil
}

func (w *watcher) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for pause(ctx, doubledEvery) {
			w.doubled()
		}
	})
	for pause(ctx, watchEvery) {
		if s, err := w.look(ctx); err == nil && !w.isBack() {
			w.measure(s)
			w.always(s)
		}
	}
}

// restoring is called before Consul is restored, and after everything is rebuilt. Waits are
// dropped, because their objects may have been replaced.
func (w *watcher) restoring(back bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.back, w.waiting = back, nil
}

func (w *watcher) isBack() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.back
}

// look reads the registry from any Consul server that responds.
func (w *watcher) look(ctx context.Context) (*snapshot, error) {
	var err error
	for _, c := range w.clients {
		var pairs consul.KVPairs
		pairs, _, err = c.KV().List(prefix, (&consul.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err == nil {
			return read(pairs)
		}
	}
	return nil, err
}

func read(pairs consul.KVPairs) (*snapshot, error) {
	s := &snapshot{
		rows: map[string]*engine.Row{}, ids: map[string]string{}, quota: map[string]int{}, pool: map[string]bool{}, unreachable: map[string]bool{},
	}
	for _, p := range pairs {
		name, rest, _ := strings.Cut(strings.TrimPrefix(p.Key, prefix), "/")
		var err error
		switch name {
		case "engines":
			e := new(engine.Row)
			if err = json.Unmarshal(p.Value, e); err == nil {
				if s.rows[e.EngineID] != nil {
					return nil, fmt.Errorf("two rows have engine_id %s", e.EngineID)
				}
				s.rows[e.EngineID] = e
			}
		case "engine-ids":
			s.ids[rest] = string(p.Value)
		case "quota":
			s.quota[rest], err = strconv.Atoi(string(p.Value))
		case "pool": // volumes and warm engines
			s.pool[path.Base(rest)] = true
		case "graves":
			s.unreachable[rest] = true
		case "leader":
			if p.Session != "" {
				s.lead = string(p.Value)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Key, err)
		}
	}
	return s, nil
}

func (w *watcher) report(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble[fmt.Sprintf(format, args...)] = true
}

// always checks what must be true at every moment: rows, their index and the quota change
// in one transaction, and the quota is never exceeded.
func (w *watcher) always(s *snapshot) {
	count := map[string]int{}
	for _, e := range s.rows {
		count[e.ProductID]++
	}
	for _, p := range w.rig.products {
		if count[p.ProductID] != s.quota[p.ProductID] {
			w.report("product %s has %d rows and its quota counts %d", p.Slug, count[p.ProductID], s.quota[p.ProductID])
		}
		if p.limit > 0 && count[p.ProductID] > p.limit {
			w.report("product %s has %d engines, it may have %d", p.Slug, count[p.ProductID], p.limit)
		}
	}
	if len(s.ids) != len(s.rows) {
		w.report("there are %d rows and %d engine-ids", len(s.rows), len(s.ids))
	}
}

// doubled searches for two processes of one engine.
func (w *watcher) doubled() {
	of := map[string][]devstack.Task{}
	for _, t := range w.rig.Tasks() {
		if strings.HasPrefix(t.JobID, jobPrefix) { // otherwise a script of the service
			of[t.JobID] = append(of[t.JobID], t)
		}
	}
	for job, tasks := range of {
		if len(tasks) > 1 {
			w.report("%s ran %d times at once: %v", job, len(tasks), tasks)
		}
	}
}

// measure records awaited events that have happened.
func (w *watcher) measure(s *snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = s
	var still []wait
	for _, x := range w.waiting {
		took := time.Since(x.since)
		switch {
		case x.crashed:
			switch e := s.rows[x.row]; {
			case e == nil || e.Op != nil && e.Op.Kind != engine.OpRecover:
				// A caller was faster, so the event can no longer be observed.
			case e.State == engine.Running:
				still = append(still, x)
			default:
				w.crashes = append(w.crashes, took)
			}
		case x.op == "" && !x.complete:
			// The first read after the kill: a dead process no longer writes.
			for _, e := range s.rows {
				if e.Op != nil && e.Op.Owner == x.owner {
					still = append(still, wait{since: x.since, owner: x.owner, op: e.Op.ID, row: e.EngineID})
				}
			}
			if s.lead == x.owner {
				x.complete = true
				still = append(still, x)
			}
		case x.op == "":
			if s.lead == "" || s.lead == x.owner {
				still = append(still, x)
				break
			}
			w.takeover = append(w.takeover, took)
		default:
			over := true
			for _, e := range s.rows {
				over = over && (e.Op == nil || e.Op.ID != x.op)
			}
			if !over {
				still = append(still, x)
				break
			}
			w.recovery = append(w.recovery, took)
		}
	}
	w.waiting = still
}

// killing is called before a component is killed, and the function that it returns
// afterwards. For a replica, it waits for what the replica leads and owns.
func (w *watcher) killing(c devstack.Component) func() {
	id := ""
	if w.rig.urls[c] != "" {
		id = w.idOf(c)
	}
	return func() {
		if id == "" {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.waiting = append(w.waiting, wait{since: time.Now(), owner: id})
	}
}

// crashing is called when an engine's process was killed. It waits until a row that is
// running, without an operation, changes.
func (w *watcher) crashing(engineID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last == nil {
		return
	}
	if e := w.last.rows[engineID]; e != nil && e.State == engine.Running && e.Op == nil {
		w.waiting = append(w.waiting, wait{since: time.Now(), row: engineID, crashed: true})
	}
}

// idOf returns the id of a replica's process: the newest session that was created through
// the Consul agent beside it. Any server can be read, even one without a leader.
func (w *watcher) idOf(c devstack.Component) string {
	for _, client := range w.clients {
		sessions, _, err := client.Session().List(&consul.QueryOptions{AllowStale: true})
		if err != nil {
			continue
		}
		slices.SortFunc(sessions, func(a, b *consul.SessionEntry) int { return cmp.Compare(b.CreateIndex, a.CreateIndex) })
		for _, s := range sessions {
			if s.Node != string(w.agentOf(c)) {
				continue
			}
			if f := strings.Fields(s.Name); len(f) > 2 {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.ids[c] = f[2] // "orch replica ID on HOST"
				return f[2]
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ids[c]
}

// agentOf returns the Consul agent beside a replica.
func (w *watcher) agentOf(c devstack.Component) devstack.Component {
	for i, host := range w.rig.Hosts {
		if host == string(c) {
			return devstack.ConsulClient(3 + i)
		}
	}
	return ""
}

// leader returns the leading replica.
func (w *watcher) leader() string {
	w.mu.Lock()
	lead := ""
	if w.last != nil {
		lead = w.last.lead
	}
	w.mu.Unlock()
	for name := range w.rig.urls {
		if lead != "" && w.idOf(name) == lead {
			return string(name)
		}
	}
	return ""
}

// quantiles formats a line of a report.
func quantiles(list []time.Duration) string {
	if len(list) == 0 {
		return "none seen"
	}
	slices.Sort(list)
	at := func(q float64) time.Duration {
		return list[int(q*float64(len(list)-1)+0.5)].Round(10 * time.Millisecond)
	}
	return fmt.Sprintf("n %d, p50 %s, p95 %s, max %s", len(list), at(0.5), at(0.95), at(1))
}
