package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/fault"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/reconcile"
	"github.com/septemberai/orch/secrets"
)

const (
	// guardEvery is how often the deployment's record is read in Consul, and
	// witnessEvery in Vault.
	guardEvery   = time.Second
	witnessEvery = 5 * time.Second
	// epochEvery is how often a leader raises the epoch while its term lasts: a store
	// that goes back by more than that shows it by the epoch.
	epochEvery = 30 * time.Second
	// challengeWait is how long a service whose registry is not the one that Vault
	// names waits for a word of that one: each of its replicas looks every
	// witnessEvery, and one call may take callTimeout.
	challengeWait = 20 * time.Second
	// recoverWait is how long a change waits for a registry that is being rebuilt.
	recoverWait = 10 * time.Second
	// suspectsRead bounds how many secrets without a row are read to confirm that
	// rows are missing: one is enough.
	suspectsRead = 64
)

// guard knows which deployment this is, and whether its registry is whole. Every
// replica has one. What is handed out is handed out only while it says so: each
// claim is checked, in its own transaction, against the record that the guard
// follows.
type guard struct {
	s   *Scheduler
	log hclog.Logger

	mu       sync.Mutex
	record   *registry.Deployment // as it was read last; nil: never
	verified bool                 // by this replica, since anything last spoke against it
	failed   error                // why the last look came to nothing
	mount    bool                 // the keys in Vault are surely this deployment's
	changed  chan struct{}        // closed when any of it changes
	term     bool                 // this replica leads, and has raised the epoch
	back     string               // what shows that Consul went back; "": nothing

	wake chan struct{} // something speaks against the registry

	// Only run uses these.
	witness  time.Time // when Vault's record was last read
	began    time.Time // when the epoch was raised last
	nonce    string    // of a challenge of ours
	deadline time.Time
}

func newGuard(s *Scheduler) *guard {
	return &guard{s: s, log: s.log.Named("registry"), changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// where is what an operator chose that tells this deployment from another.
func (g *guard) where() string {
	return fmt.Sprintf("ORCH_CONSUL_PREFIX=%s/ ORCH_NOMAD_NAMESPACE=%s", g.s.opts.Job.Deployment, g.s.opts.Job.Namespace)
}

// ID is the deployment's id; "" while it is not known.
func (g *guard) ID() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.record == nil {
		return ""
	}
	return g.record.ID
}

// Current is the deployment's record as it was read last, or nil.
func (g *guard) Current() *registry.Deployment {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.record
}

// run follows the deployment's record until ctx ends. It returns an error only when
// this service must not run here: *ForeignError.
func (g *guard) run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := g.look(ctx)
		var foreign *ForeignError
		if errors.As(err, &foreign) {
			return foreign
		}
		if err != nil && ctx.Err() == nil {
			g.log.Debug("the deployment's record was not confirmed; trying again", "error", err)
		}
		g.mu.Lock()
		g.failed = err
		g.publish()
		g.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-g.wake:
		case <-g.s.store.Back():
		case <-time.After(g.wait(err)):
		}
	}
	return nil
}

// wait is how long until the next look: a short time while a replica begins, for
// everything waits for it.
func (g *guard) wait(err error) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.verified && (err == nil || errors.Is(err, registry.ErrNoSession)) {
		return guardEvery / 10
	}
	return guardEvery
}

// look reads what the stores say now, and acts on it.
func (g *guard) look(ctx context.Context) error {
	select {
	case <-g.s.replica.Joined():
	default:
		return registry.ErrNoSession
	}
	if why, heard := g.s.store.WentBack(); why != "" {
		g.wentBack(why)
		heard()
	}
	record, err := g.s.store.Deployment(ctx)
	if before := g.Current(); err == nil && before != nil && record.Index < before.Index {
		// Perhaps it was written while it was read.
		if record, err = g.s.store.Deployment(ctx); err == nil && 0 < record.Index && record.Index < before.Index {
			g.wentBack(olderRecord)
		}
	}
	if err != nil {
		return err
	}
	g.take(record)
	g.mu.Lock()
	back := g.back
	g.mu.Unlock()
	if back != "" {
		if err := g.StartRecovery(ctx, back, true); err != nil {
			return err
		}
		g.mu.Lock()
		g.back = ""
		g.mu.Unlock()
	}
	if err := g.compare(ctx); err != nil {
		return err
	}
	return g.verify(ctx)
}

// take takes over the record that was read.
func (g *guard) take(record *registry.Deployment) {
	g.mu.Lock()
	before := g.record
	g.record = record
	g.mu.Unlock()
	if record.State == registry.RegistryRecovering && (before == nil || before.State != record.State) {
		g.s.store.ForgetCounts()
	}
	switch {
	case before == nil || before.Index == 0:
	case record.Index == 0:
		g.endTerm()
		g.distrust("the deployment's record is gone from Consul")
	case record.Epoch < before.Epoch || record.Registry != before.Registry:
		g.wentBack(olderRecord)
	}
	g.mu.Lock()
	g.publish()
	g.mu.Unlock()
}

const olderRecord = "the deployment's record in Consul is an older one"

// wentBack notes what shows that Consul went back.
func (g *guard) wentBack(why string) {
	g.mu.Lock()
	g.term, g.back = false, why
	g.mu.Unlock()
	g.distrust(why)
}

// endTerm has this replica begin its term as the leader once more.
func (g *guard) endTerm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.term = false
}

// Forward says whether the registry is known to be whole and has surely not gone back by
// now: for what acts by itself on what it has just read.
func (g *guard) Forward(ctx context.Context) bool {
	before := g.Current()
	if !g.OK() || g.s.mirror.Confirm(ctx) != nil {
		g.poke()
		return false
	}
	record, err := g.s.store.Deployment(ctx)
	if err != nil || record.Index < before.Index {
		g.poke()
		return false
	}
	return g.OK()
}

// distrust says that the registry may have gone back: nothing is handed out until
// it was held against its witnesses again.
func (g *guard) distrust(why string) {
	g.mu.Lock()
	was := g.verified
	g.verified = false
	g.publish()
	g.mu.Unlock()
	if was {
		g.log.Warn("the registry may have gone back in time; it is compared with its witnesses", "why", why)
	}
	g.s.vault.Forget() // rows of then name keys that are destroyed by now
	g.poke()
}

// suspect is distrust with a proof in hand: the registry is to be rebuilt.
func (g *guard) suspect(why string) {
	g.distrust(why)
	g.s.background(func(ctx context.Context) {
		if err := g.StartRecovery(ctx, why, false); err != nil && ctx.Err() == nil {
			g.log.Debug("the registry's recovery was not begun; the next comparison does it", "error", err)
		}
	})
}

// poke has the guard look at once.
func (g *guard) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// publish lets claims through, or holds them. The lock is held.
func (g *guard) publish() {
	var follow *registry.Deployment
	if g.verified && g.record != nil && g.record.Index != 0 && g.record.State == registry.RegistryOK {
		follow = g.record
	}
	g.s.store.Follow(follow)
	close(g.changed)
	g.changed = make(chan struct{})
}

// whole says whether the registry is known to be whole, and what keeps it from
// being so.
func (g *guard) whole() (ok bool, changed <-chan struct{}, err error) {
	why, _ := g.s.store.WentBack()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case why != "": // and run has not heard of it yet
		return false, g.changed, errRecovering
	case g.record != nil && g.record.Index != 0 && g.record.State == registry.RegistryRecovering:
		return false, g.changed, errRecovering
	case g.record == nil || g.record.Index == 0 || !g.verified:
		if g.failed != nil {
			return false, g.changed, g.failed
		}
		return false, g.changed, errRecovering
	}
	return true, g.changed, nil
}

// OK says whether the registry is known to be whole, now.
func (g *guard) OK() bool {
	ok, _, _ := g.whole()
	return ok
}

var errRecovering = &Error{
	Code: RegistryRecovering, Message: "the registry (Consul) went back in time and is being rebuilt; running engines can be admitted meanwhile; try again", RetryAfter: retryRecovering,
}

// await waits until the registry is known to be whole. REGISTRY_RECOVERING: it was
// not within recoverWait. BACKEND_UNAVAILABLE: a store that has to say so is away.
func (g *guard) await(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, recoverWait)
	defer cancel()
	for {
		ok, changed, err := g.whole()
		if ok {
			return nil
		}
		// A store that is away is told at once, as everywhere.
		if code := AsError(err).Code; code == BackendUnavailable && !errors.Is(err, registry.ErrNoSession) || code == BackendError {
			return err
		}
		select {
		case <-changed:
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
	}
}

// again reads the record at once, after a claim was refused because it had changed,
// and waits until the registry is known to be whole. The errors are those of await.
func (g *guard) again(ctx context.Context) error {
	g.mu.Lock()
	changed := g.changed
	g.mu.Unlock()
	g.poke()
	select {
	case <-changed:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(guardEvery):
	}
	return g.await(ctx)
}

// compare holds the record against Vault's from time to time: it refuses those who
// want this deployment's keys, and begins the term of a new leader.
func (g *guard) compare(ctx context.Context) error {
	leads := g.s.replica.Leader()
	g.mu.Lock()
	g.term = g.term && leads
	term := g.term
	g.mu.Unlock()
	if (term || !leads) && time.Since(g.witness) < witnessEvery {
		return nil
	}
	there, err := g.s.vault.Deployment(ctx)
	if err != nil {
		return err
	}
	here := g.Current()
	if here.ID != "" && here.ID == there.ID && here.Registry == there.Registry && there.Challenge != "" {
		g.log.Error("another service with another registry (Consul) wants the keys of this deployment; it is refused", "deployment", there.ID)
		there.Challenge = ""
		if err := g.s.vault.PutDeployment(ctx, there); err != nil && !errors.Is(err, secrets.ErrConflict) {
			return err
		}
	}
	if !leads && here.ID != "" && there.ID != "" && here.ID != there.ID {
		return &ForeignError{Ours: here.ID, Theirs: there.ID, Mount: g.s.vault.Mount(), Where: g.where(), TheirWhere: there.Where}
	}
	verdict := compare(here, there, g.where())
	// Whoever comes first begins a new deployment: beside a leader of a version that
	// knew none, too.
	if !leads && verdict != lineageNew || term && time.Since(g.began) < epochEvery && verdict == lineageSame {
		g.witness = time.Now()
	} else if err := g.begin(ctx, here, there); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mount = g.record.ID != ""
	return nil
}

// owned returns nil when the keys in Vault are surely this deployment's.
func (g *guard) owned() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mount {
		return nil
	}
	return fmt.Errorf("%w: whether its mount is this deployment's was not read yet (%v)", secrets.ErrUnavailable, g.failed)
}

// begin begins a term, or the next epoch of one: it holds the two records against each
// other, and writes the next epoch into both.
func (g *guard) begin(ctx context.Context, here *registry.Deployment, there *secrets.Deployment) error {
	next, now := *here, time.Now().UTC()
	recovering := func(why string) {
		next.Back = true
		if next.State != registry.RegistryRecovering {
			next.State, next.Why, next.Since = registry.RegistryRecovering, why, now
			g.log.Error("the registry went back in time; rebuilding it from its witnesses in Vault and Nomad", "why", why)
		}
	}
	keysLost := func() {
		if next.KeysLost == nil {
			next.KeysLost = &now
			g.log.Error("Vault went back in time: engines may have lost their keys; `orch registry status` counts them, `orch engine rekey` gives them new ones")
		}
	}
	switch verdict := compare(here, there, g.where()); verdict {
	case lineageForeign:
		return &ForeignError{Ours: here.ID, Theirs: there.ID, Mount: g.s.vault.Mount(), Where: g.where(), TheirWhere: there.Where}
	case lineageNew:
		next = registry.Deployment{ID: newID(), Registry: newID(), State: registry.RegistryOK, Index: here.Index}
	case lineageLost:
		if err := g.challenge(ctx, here, there); err != nil {
			return err
		}
		if next.Registry == "" {
			next = registry.Deployment{ID: there.ID, Registry: newID(), Index: here.Index}
		}
		recovering("Consul has no record of this deployment, and Vault has its keys")
	case lineageBehind:
		recovering(fmt.Sprintf("the epoch in Consul is %d, and in Vault %d", here.Epoch, there.Epoch))
	case lineageKeysBehind:
		keysLost()
	case lineageSame:
	}
	leads := g.s.replica.Leader()
	if err := g.raise(ctx, next, there, leads); err != nil {
		return err
	}
	g.witness, g.began, g.nonce = time.Now(), time.Now(), ""
	g.mu.Lock()
	defer g.mu.Unlock()
	g.term = leads
	return nil
}

// raise writes the next epoch into both stores. The registry says first which epoch is
// to come: whoever finds that one in Vault knows that a leader died in between, and
// that nothing went back.
func (g *guard) raise(ctx context.Context, next registry.Deployment, there *secrets.Deployment, leads bool) error {
	put := g.s.store.LeadDeployment
	if !leads && next.Epoch == 0 { // of a new deployment
		put = g.s.store.PutDeployment
	}
	epoch := max(next.Epoch, next.Raising, there.Epoch) + 1
	if next.Epoch > 0 {
		// What a leader that died left half done is done with this write.
		next.Epoch, next.Raising = max(next.Epoch, there.Epoch), epoch
		meant := next
		if err := put(ctx, &meant); err != nil {
			return err
		}
		next.Index = meant.Index
		g.take(&meant)
		fault.Hit(pointEpochMeant)
	}
	record := &secrets.Deployment{ID: next.ID, Registry: next.Registry, Epoch: epoch, Where: g.where(), Version: there.Version}
	if err := g.s.vault.PutDeployment(ctx, record); err != nil {
		return err
	}
	fault.Hit(pointEpochRaised)
	next.Epoch, next.Raising = epoch, 0
	if err := put(ctx, &next); err != nil {
		return err
	}
	g.take(&next)
	return nil
}

// retire raises the epoch once more before a leader stops, so that a registry which is
// restored while no replica runs is known to be behind.
func (g *guard) retire(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*pingTimeout)
	defer cancel()
	here := g.Current()
	if here == nil || !g.s.replica.Leader() || !g.OK() {
		return
	}
	there, err := g.s.vault.Deployment(ctx)
	if err == nil && compare(here, there, g.where()) == lineageSame {
		err = g.raise(ctx, *here, there, true)
	}
	if err != nil {
		g.log.Debug("the epoch was not raised before this leader stops", "error", err)
	}
}

var errChallenged = errors.New("waiting for a word of the registry that Vault names")

// challenge finds out whether the registry that Vault names is alive, when it is
// not this one. nil: nobody answered in time. *ForeignError: it is.
func (g *guard) challenge(ctx context.Context, here *registry.Deployment, there *secrets.Deployment) error {
	now := time.Now()
	switch {
	case g.nonce == "":
		g.nonce, g.deadline = newID(), now.Add(challengeWait)
		g.log.Warn("Vault names another registry (Consul) than this one; asking whether that one is alive", "deployment", there.ID, "for", challengeWait.String())
		there.Challenge = g.nonce
		if err := g.s.vault.PutDeployment(ctx, there); err != nil {
			g.nonce = ""
			return err
		}
		return errChallenged
	case there.Challenge != g.nonce:
		return &ForeignError{Ours: here.ID, Theirs: there.ID, Mount: g.s.vault.Mount(), Where: g.where(), TheirWhere: there.Where, Live: true}
	case now.Before(g.deadline):
		return errChallenged
	}
	return nil
}

// verify holds the registry against the secrets in Vault, once: an engine that has
// a user there and nothing here says that rows are missing, and one whose volume is
// still pooled here that the registry is an old one. The list of secrets is
// read before the registry, so that what is made meanwhile is not missed here.
func (g *guard) verify(ctx context.Context) error {
	record := g.Current()
	g.mu.Lock()
	done := g.verified
	g.mu.Unlock()
	if done || record.Index == 0 || record.ID == "" || record.State != registry.RegistryOK {
		return nil
	}
	ids, err := g.s.vault.EngineIDs(ctx)
	if err != nil {
		return err
	}
	pooled, err := g.s.store.PoolIDs(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if pooled[id] { // the entry goes before the key comes
			return g.StartRecovery(ctx, "engine "+id+" has a key in Vault, and its volume is pooled in Consul", false)
		}
	}
	held, err := g.s.store.Traces(ctx)
	if err != nil {
		return err
	}
	read := 0
	for _, id := range ids {
		if held[id] {
			continue
		}
		if read++; read > suspectsRead {
			break // leftovers, so many of them; reconcile reads them all
		}
		lost, err := g.s.reconcile.Lost(ctx, id)
		if err != nil {
			return err
		}
		if lost {
			return g.StartRecovery(ctx, "engine "+id+" has a user in Vault and no row in Consul", false)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.verified = true
	g.publish()
	return nil
}

// StartRecovery says in the deployment's record that the registry is to be rebuilt;
// back: it is an older one as a whole.
func (g *guard) StartRecovery(ctx context.Context, why string, back bool) error {
	var record *registry.Deployment
	for {
		var err error
		if record, err = g.s.store.Deployment(ctx); err != nil {
			return err
		}
		if record.Index == 0 || record.State == registry.RegistryRecovering && (record.Back || !back) {
			g.take(record)
			return nil
		}
		record.State, record.Why, record.Since, record.Back = registry.RegistryRecovering, why, time.Now().UTC(), record.Back || back
		err = g.s.store.PutDeployment(ctx, record)
		if err == nil {
			break
		}
		if !errors.Is(err, registry.ErrConflict) || ctx.Err() != nil {
			return err
		}
	}
	g.log.Error("the registry lost rows; rebuilding it from its witnesses in Vault and Nomad", "why", why)
	g.take(record)
	return nil
}

// EndRecovery says, as the leader, that the registry is whole again.
func (g *guard) EndRecovery(ctx context.Context, record *registry.Deployment, done registry.Recovery) error {
	next := *record
	next.State, next.Why, next.Since, next.Back = registry.RegistryOK, "", time.Time{}, false
	next.Last = &done
	if err := g.s.store.LeadDeployment(ctx, &next); err != nil {
		return err
	}
	g.mu.Lock()
	g.verified = true // every engine was just compared
	g.mu.Unlock()
	g.take(&next)
	return nil
}

// NoteKeys says in the deployment's record, as the leader, how many engines have lost
// their key; at none, Vault is whole again.
func (g *guard) NoteKeys(ctx context.Context, missing int) error {
	record := g.Current()
	if record == nil || record.KeysMissing == missing && (record.KeysLost == nil || missing > 0) {
		return nil
	}
	next := *record
	next.KeysMissing = missing
	if missing == 0 {
		next.KeysLost = nil
	}
	if err := g.s.store.LeadDeployment(ctx, &next); err != nil {
		return reconcile.MovedOn(err)
	}
	g.take(&next)
	return nil
}
