package chaos

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/devstack"
)

// truth compares the registry with what really exists, with root's tokens.
type truth struct {
	rig   *rig
	watch *watcher
	nomad *nomad.Client
	vault *vault.Client
	http  *http.Client
}

func newTruth(r *rig, w *watcher) (*truth, error) {
	t := &truth{rig: r, watch: w, http: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: r.TLS()}}}
	var err error
	cfg := r.NomadConfig()
	cfg.HttpClient = t.http
	if t.nomad, err = nomad.NewClient(cfg); err != nil {
		return nil, err
	}
	if t.vault, err = vault.NewClient(&vault.Config{Address: r.VaultAddr, HttpClient: t.http}); err != nil {
		return nil, err
	}
	t.vault.SetToken(r.VaultRootToken)
	return t, nil
}

// problems returns all differences between the registry and what exists, or an error if
// something could not be read.
func (t *truth) problems(ctx context.Context) ([]string, error) {
	// The registry is read first and last: if it changes meanwhile, nothing can be
	// concluded.
	before, err := t.watch.look(ctx)
	if err != nil {
		return nil, err
	}
	var found []string
	bad := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	count := map[string]int{}
	for id, e := range before.rows {
		count[e.ProductID]++
		if e.Op != nil {
			bad("engine %s (%s) is still in %s at %s, owner %s", id, e.UserID, e.Op.Kind, e.Op.Step, e.Op.Owner)
		}
		if before.ids[id] == "" {
			bad("engine %s has no index", id)
		}
	}
	for id := range before.ids {
		if before.rows[id] == nil {
			bad("index of engine %s without a row", id)
		}
	}
	for product, n := range before.quota {
		if n != count[product] {
			bad("quota of %s is %d, it has %d rows", product, n, count[product])
		}
	}
	for id := range before.unreachable {
		bad("unreachable volume of engine %s, and every node is back", id)
	}
	for _, look := range []func(context.Context, *snapshot, func(string, ...any)) error{t.jobs, t.processes, t.volumes, t.variables, t.keys} {
		if err := look(ctx, before, bad); err != nil {
			return nil, err
		}
	}
	slices.Sort(found)
	return found, nil
}

const jobPrefix = "engine-"

func (t *truth) query(ctx context.Context) *nomad.QueryOptions {
	return (&nomad.QueryOptions{}).WithContext(ctx)
}

func (t *truth) jobs(ctx context.Context, s *snapshot, bad func(string, ...any)) error {
	jobs, _, err := t.nomad.Jobs().List(t.query(ctx))
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, j := range jobs {
		id := strings.TrimPrefix(j.ID, jobPrefix)
		seen[id] = true
		// A replica that was killed after the end of such a job did not remove it; Nomad's
		// garbage collection does.
		finished := strings.HasPrefix(j.ID, "orch-fence-") && j.Status == "dead"
		if !s.known(id) && !finished {
			bad("job %s (%s) without a row", j.ID, j.Status)
		}
	}
	allocs, _, err := t.nomad.Allocations().List(t.query(ctx))
	if err != nil {
		return err
	}
	living := map[string][]string{}
	for _, a := range allocs {
		if a.ClientStatus == nomad.AllocClientStatusRunning || a.ClientStatus == nomad.AllocClientStatusPending || a.ClientStatus == nomad.AllocClientStatusUnknown {
			id := strings.TrimPrefix(a.JobID, jobPrefix)
			living[id] = append(living[id], a.ID+" "+a.ClientStatus)
		}
	}
	for id, list := range living {
		switch e := s.rows[id]; {
		case s.pool[id]:
		case e == nil:
			bad("allocation %v of engine %s without a row", list, id)
		case len(list) > 1:
			bad("engine %s has allocations %v", id, list)
		case e.State != engine.Running && e.State != engine.Failed:
			bad("engine %s is %s and has allocation %v", id, e.State, list)
		}
	}
	for id, e := range s.rows {
		if e.State == engine.Running && (!seen[id] || len(living[id]) != 1) {
			bad("engine %s (%s) is running; job %t, allocations %v", id, e.UserID, seen[id], living[id])
		}
	}
	return nil
}

func (t *truth) processes(_ context.Context, s *snapshot, bad func(string, ...any)) error {
	of := map[string][]devstack.Task{}
	for _, task := range t.rig.Tasks() {
		id := strings.TrimPrefix(task.JobID, jobPrefix)
		of[id] = append(of[id], task)
		if !s.known(id) {
			bad("process %d of engine %s without a row", task.PID, id)
		}
	}
	for id, e := range s.rows {
		n := len(of[id])
		if n > 1 || e.State == engine.Running && n != 1 || e.State != engine.Running && e.State != engine.Failed && n != 0 {
			bad("engine %s (%s) is %s and has %d processes %v", id, e.UserID, e.State, n, of[id])
		}
	}
	return nil
}

func (t *truth) volumes(ctx context.Context, s *snapshot, bad func(string, ...any)) error {
	volumes, _, err := t.nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, t.query(ctx))
	if err != nil {
		return err
	}
	named := map[string][]*nomad.HostVolumeStub{}
	for _, v := range volumes {
		id := strings.TrimPrefix(v.Name, jobPrefix)
		named[id] = append(named[id], v)
		if !s.known(id) {
			bad("volume %s on node %s without a row", v.Name, short(v.NodeID))
		}
	}
	for id, e := range s.rows {
		switch list := named[id]; {
		case len(list) != 1:
			bad("engine %s (%s, %s) has %d volumes", id, e.UserID, e.State, len(list))
		case list[0].ID != e.VolumeID || list[0].NodeID != e.NodeID:
			bad("engine %s has volume %s on %s, its row has %s on %s", id, list[0].ID, list[0].NodeID, e.VolumeID, e.NodeID)
		}
	}
	return nil
}

func (t *truth) variables(ctx context.Context, s *snapshot, bad func(string, ...any)) error {
	list, _, err := t.nomad.Variables().List(t.query(ctx))
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, v := range list {
		id := strings.TrimPrefix(v.Path, "nomad/jobs/"+jobPrefix)
		seen[id] = true
		if !s.known(id) {
			bad("variable %s without a row", v.Path)
		}
	}
	for id, e := range s.rows {
		if !seen[id] {
			bad("engine %s (%s) has no variable", id, e.State)
		}
	}
	return nil
}

func (t *truth) keys(ctx context.Context, s *snapshot, bad func(string, ...any)) error {
	secret, err := t.vault.Logical().ListWithContext(ctx, "orch/metadata/engines")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	if secret != nil {
		list, _ := secret.Data["keys"].([]any)
		for _, k := range list {
			id, _ := k.(string)
			seen[id] = true
			if !s.known(id) {
				bad("key of engine %s without a row", id)
			}
		}
	}
	for id, e := range s.rows {
		if !seen[id] {
			bad("engine %s (%s) has no key", id, e.State)
		}
	}
	return nil
}

// memory is the exported brain of an engine.
type memory struct {
	Memories []struct{ Input string }
}

// remembers returns how an engine's brain differs from what was acknowledged.
func (b *brains) remembers(ctx context.Context, e *client.Engine) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var m memory
	if err := engineAPI(e).Do(ctx, http.MethodGet, "/memory/export", nil, &m); err != nil {
		return fmt.Errorf("the brain cannot be read: %w", err)
	}
	b.mu.Lock()
	all := b.told[e.EngineID]
	b.mu.Unlock()
	kept := map[string]int{}
	for _, x := range m.Memories {
		kept[x.Input]++
	}
	var lost, foreign, twice []string
	ours := map[string]bool{}
	for _, x := range all {
		ours[x.text] = true
		if x.acked && kept[x.text] == 0 {
			lost = append(lost, x.text)
		}
	}
	for text, n := range kept {
		if !ours[text] {
			foreign = append(foreign, text)
		}
		if n > 1 {
			twice = append(twice, text)
		}
	}
	if len(lost)+len(foreign)+len(twice) > 0 {
		return fmt.Errorf("lost %v, foreign %v, doubled %v, of %d written and %d kept", lost, foreign, twice, len(all), len(m.Memories))
	}
	return nil
}
