package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"text/tabwriter"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
	"github.com/septemberai/orch/internal/dev"
	"github.com/septemberai/orch/internal/devstack"
)

func demoCommand(*cmdline.Env) *cmdline.Command {
	return &cmdline.Command{
		Name: "demo", Synopsis: "Run one engine through its whole life",
		About: `Start a stack of its own on free ports, take one engine through its whole life
(provision, talk to it, rotate its key, stop, start, destroy), check every step in
the engine and in Nomad, Consul and Vault, and print how long each took. The exit
code is 0 only if every step succeeded.`,
		Examples: []string{"orch-dev demo"},
		Run:      func(ctx context.Context, _ *cmdline.Call) error { return runDemo(ctx) },
	}
}

// demoStep is one row of the demo's table.
type demoStep struct {
	name string
	do   func(context.Context) error
}

func runDemo(ctx context.Context) (err error) {
	progress := func(line string) { fmt.Fprintln(os.Stderr, line) }
	binaries, err := devstack.Tools(ctx, devstack.ToolOptions{Progress: progress})
	if err != nil {
		return err
	}
	sys, err := dev.Start(ctx, dev.Options{
		Stack:    devstack.Config{Locked: true, Binaries: binaries, Progress: progress},
		Vars:     map[string]string{"ORCH_ADDR": "127.0.0.1:0", "ORCH_OPS_ADDR": "127.0.0.1:0", "ORCH_VOLUME_POOL": "1"},
		Progress: progress, LogTo: os.Stderr,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Stop()) }()

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer func() { _ = w.Flush() }()
	for _, step := range (&demo{sys: sys, c: sys.Demo()}).steps() {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			_, _ = fmt.Fprintf(w, "FAILED\t%s\t\n", step.name)
			return fmt.Errorf("%s: %w", step.name, err)
		}
		_, _ = fmt.Fprintf(w, "ok\t%s\t%.1f ms\n", step.name, float64(time.Since(began).Microseconds())/1000)
	}
	return nil
}

// demo is the state of the demo: one engine, and the service that manages it.
type demo struct {
	sys    *dev.System
	c      *client.Client
	engine *client.Engine
	key    string
}

const demoMemory = "the sky is blue"

func (d *demo) steps() []demoStep {
	return []demoStep{
		{"wait for a ready volume", d.awaitVolume},
		{"provision", func(ctx context.Context) (err error) {
			d.engine, err = d.c.Provision(ctx, demoUser, "")
			if err == nil {
				d.key = d.engine.APIKey
			}
			return err
		}},
		{"store something in the brain", func(ctx context.Context) error {
			return d.call(ctx, d.key, http.MethodPost, "/execute", map[string]string{"input": demoMemory}, nil)
		}},
		{"rotate the key", func(ctx context.Context) (err error) {
			d.key, err = d.c.RotateKey(ctx, demoUser)
			return err
		}},
		{"the old key is refused", func(ctx context.Context) error {
			err := d.call(ctx, d.engine.APIKey, http.MethodGet, "/memory/export", nil, nil)
			var refused *client.Error
			if errors.As(err, &refused) && refused.Status == http.StatusUnauthorized {
				return nil
			}
			return fmt.Errorf("the engine's response: %w", err)
		}},
		{"the new key is accepted, at the same URL", func(ctx context.Context) error {
			before := d.engine.URL
			if err := d.reread(ctx); err != nil {
				return err
			}
			if d.engine.URL != before {
				return errors.New("the URL changed")
			}
			return d.remembers(ctx)
		}},
		{"stop", func(ctx context.Context) error {
			if _, err := d.c.Stop(ctx, demoUser); err != nil {
				return err
			}
			if err := d.call(ctx, d.key, http.MethodGet, "/health", nil, nil); err == nil {
				return errors.New("the engine still responds")
			}
			return nil
		}},
		{"start", func(ctx context.Context) error { _, err := d.c.Start(ctx, demoUser); return err }},
		{"the brain still knows", func(ctx context.Context) error {
			return errors.Join(d.reread(ctx), d.remembers(ctx))
		}},
		{"destroy", func(ctx context.Context) error { _, err := d.c.Destroy(ctx, demoUser); return err }},
		{"job, volume, variable, key and row are gone", d.gone},
	}
}

// awaitVolume waits for the first host volume, which takes seconds that should not count as
// part of the provision.
func (d *demo) awaitVolume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for d.sys.PooledVolumes() == 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func (d *demo) reread(ctx context.Context) (err error) {
	d.engine, err = d.c.Engine(ctx, demoUser)
	if err == nil && d.engine.APIKey != d.key {
		err = errors.New("the service returned another key")
	}
	return err
}

func (d *demo) remembers(ctx context.Context) error {
	var brain struct{ Memories []struct{ Input string } }
	if err := d.call(ctx, d.key, http.MethodGet, "/memory/export", nil, &brain); err != nil {
		return err
	}
	if len(brain.Memories) != 1 || brain.Memories[0].Input != demoMemory {
		return fmt.Errorf("the brain contains %v", brain.Memories)
	}
	return nil
}

// call calls the engine with a key, as its user's product would.
func (d *demo) call(ctx context.Context, key, method, path string, in, out any) error {
	c := &client.Client{BaseURL: d.engine.URL, HTTP: &http.Client{Transport: engineKey(key)}}
	return c.Do(ctx, method, path, in, out)
}

// engineKey sends a key with every request, on a new connection each time, because the
// process behind the URL changes.
type engineKey string

func (k engineKey) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Engine-Key", string(k))
	r.Close = true
	return http.DefaultTransport.RoundTrip(r)
}

// gone checks in the stores themselves that nothing is left.
func (d *demo) gone(ctx context.Context) error {
	left, err := d.sys.Traces(ctx, d.engine.EngineID)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %v", left)
	}
	return err
}
