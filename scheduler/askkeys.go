package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/secrets"
)

// This file determines which of two keys an engine accepts: by asking it, or, if the service
// does not reach it, from what Nomad registered in Consul. Nomad ends a process before it
// starts the next one in the same allocation, and registers the service of the next one
// with the checksum of the key whose hash that process got. So the checksum proves what the
// process was given. That the engine compares keys with it, only the engine itself can
// prove.

const (
	// consulPatience is how long a rotation waits for the engine's own response before it
	// asks Consul, too: most restarts for a new key take a tenth of it.
	consulPatience = time.Second
	// askConsulEvery is the interval of asking Consul during a rotation.
	askConsulEvery = 500 * time.Millisecond
	// dialWithin limits a connection that only shows whether an engine can be reached.
	dialWithin = 2 * time.Second
)

// rotationProof asks repeatedly whether a rotation is done.
type rotationProof struct {
	o     *work
	keys  *boot.Rotation
	since time.Time // since when there is no connection to the engine; zero: there is one
}

// ask is boot.Rotation.Ask, by the ways that the operator has allowed.
func (p *rotationProof) ask(ctx context.Context) (said string, err error) {
	o := p.o
	switch o.s.detector.By {
	case boot.ByProbe:
		return p.keys.Ask(ctx, o.s.probe, o.Row.URL)
	case boot.ByConsul:
		return p.askConsul(ctx)
	}
	type response struct {
		said string
		err  error
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	responses := make(chan response, 1) // the sender ends with asking
	url := o.Row.URL
	go func() {
		said, err := p.keys.Ask(asking, o.s.probe, url)
		responses <- response{said, err}
	}()
	timer := time.NewTimer(consulPatience)
	defer timer.Stop()
	for {
		select {
		case r := <-responses:
			var unreached *boot.Unreached
			if !errors.As(r.err, &unreached) {
				p.since = time.Time{}
				return r.said, r.err
			}
			if p.since.IsZero() {
				p.since = time.Now()
			}
			if time.Since(p.since) < consulPatience {
				return r.said, r.err
			}
			if said, err = p.askConsul(ctx); err == nil && said == "" {
				o.noteUnreached()
			}
			return said, err
		case <-timer.C:
			if said, err := p.askConsul(ctx); err == nil && said == "" && !o.s.detector.Reaches(ctx, url, dialWithin) && ctx.Err() == nil {
				cancel()
				<-responses
				o.noteUnreached()
				return "", nil
			}
			timer.Reset(askConsulEvery)
		}
	}
}

// askConsul checks whether Consul reports that the engine's process was started with the
// new key and can serve. It waits for a moment before it says no.
func (p *rotationProof) askConsul(ctx context.Context) (said string, err error) {
	o := p.o
	i, err := o.s.store.InstanceOf(ctx, o.Row.JobID(), o.Row.AllocID)
	switch {
	case err != nil:
	case o.s.signals():
		said = "the service cannot connect to it, and after a signal (ORCH_ENGINE_KEY_RELOAD) only its own response shows which key it accepts"
	case i.KeyChecksum == "":
		said = "the service cannot connect to it, and its job does not report the key of its process; its next start mends that"
	case i.KeyChecksum != secrets.Checksum(p.keys.New):
		said = "its process was not started with the new hash yet"
	case i.Standing != registry.Passing:
		said = "its check in Consul does not pass yet"
	default:
		return "", nil
	}
	pause.For(ctx, askConsulEvery)
	return said, err
}

// signals reports whether a process gets a new key without being started anew.
func (s *Scheduler) signals() bool { return s.opts.Job.KeyReload == "signal" }

// keyVersion names a version of an engine's key.
type keyVersion struct {
	version int
	id      string
}

// acceptedKey returns the key that an engine accepts while its key is being rotated; "":
// none, another process responds at its address, or nothing shows it.
func (s *Scheduler) acceptedKey(ctx context.Context, row *engine.Row) (string, error) {
	path, err := s.proofPath(ctx, row)
	if err != nil || row.URL == "" {
		return "", err
	}
	if s.detector.By == boot.ByConsul || s.detector.By == boot.ByEither && !s.detector.Reaches(ctx, row.URL, dialWithin) {
		return s.startedWith(ctx, row)
	}
	probe, end := s.probe.Of(row.JobID()).Talk()
	defer end()
	if probe.Locked(ctx, row.URL, path) != nil {
		return "", nil
	}
	return s.firstKey(ctx, row, func(key string) bool {
		code, err := probe.Status(ctx, row.URL, path, key)
		return err == nil && !boot.Refuses(code)
	})
}

// startedWith returns the key that an engine's process was started with according to Consul;
// "": nothing shows it.
func (s *Scheduler) startedWith(ctx context.Context, row *engine.Row) (string, error) {
	if s.signals() {
		return "", nil
	}
	i, err := s.store.InstanceOf(ctx, row.JobID(), row.AllocID)
	if errors.Is(err, registry.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if i.Standing == registry.Unknown {
		return "", nil // its node may have given the process another key since
	}
	return s.firstKey(ctx, row, func(key string) bool { return i.KeyChecksum == secrets.Checksum(key) })
}

// firstKey returns the new or the old key of a rotation, whichever is accepted; "": neither.
func (s *Scheduler) firstKey(ctx context.Context, row *engine.Row, accepted func(key string) bool) (string, error) {
	for _, k := range []keyVersion{{row.Op.KeyVersion, row.Op.KeyID}, {row.KeyVersion, row.KeyID}} {
		if k.version == 0 {
			continue
		}
		secret, err := s.vault.EngineKey(ctx, row.EngineID, k.version, k.id)
		if errors.Is(err, secrets.ErrNotFound) {
			continue
		}
		if err == nil && !s.agree(secret, row) {
			err = s.contradiction(ctx, row, secret.Owner)
		}
		if err != nil {
			return "", err
		}
		if accepted(secret.Key) {
			return secret.Key, nil
		}
	}
	return "", ctx.Err()
}

// noteUnreached logs, once per node, that a proof came from Consul because the service
// cannot connect to the engine.
func (o *work) noteUnreached() {
	if _, told := o.s.unreached.LoadOrStore(o.Row.NodeID, true); told || o.s.detector.By == boot.ByConsul {
		return
	}
	o.Log.Warn("the service cannot connect to an engine whose check in Consul passes: for engines that it cannot reach, Consul and Nomad decide, and keys are not proved (docs/operations.md, ORCH_BOOT_DETECTION)", "node_id", o.Row.NodeID, "url", o.Row.URL)
}
