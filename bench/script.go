package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/nomad/api"
)

// scriptCheckEvery is the interval of the check that a script waits for: the
// least that Consul takes.
const scriptCheckEvery = time.Second

// script runs engines as a shell script does: by Nomad's command line and the
// Consul check of the job. It waits by blocking queries where a script polls.
type script struct {
	nomad  string // the command
	addr   string
	dir    string
	floor  *floor
	consul *consul.Client
}

func (r *rig) script(f *floor) (*script, error) {
	c, err := consul.NewClient(&consul.Config{Address: r.stack.ConsulAddr})
	return &script{nomad: r.nomad, addr: r.stack.NomadAddr, dir: r.dir, floor: f, consul: c}, err
}

func (s *script) command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, s.nomad, args...)
	cmd.Env = append(os.Environ(), "NOMAD_ADDR="+s.addr)
	cmd.SysProcAttr = childAttributes()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nomad %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// file writes the job of an engine that was prepared by hand.
func (s *script) file(h *handJob) (string, error) {
	one := 1
	h.job.TaskGroups[0].Count = &one
	for _, svc := range h.job.TaskGroups[0].Tasks[0].Services {
		for i := range svc.Checks {
			svc.Checks[i].Interval = scriptCheckEvery
		}
	}
	text, err := json.Marshal(map[string]any{"Job": h.job})
	if err != nil {
		return "", err
	}
	name := filepath.Join(s.dir, *h.job.ID+".json")
	return name, os.WriteFile(name, text, 0o600)
}

// run starts the engine and returns when its check passes.
func (s *script) run(ctx context.Context, h *handJob) (timing, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	file, err := s.file(h)
	if err != nil {
		return timing{}, err
	}
	began := time.Now()
	if err := s.command(ctx, "job", "run", "-detach", "-json", file); err != nil {
		return timing{}, err
	}
	submitted := time.Now()
	q := (&consul.QueryOptions{}).WithContext(ctx)
	for {
		passing, meta, err := s.consul.Health().Service(*h.job.ID, "", true, q)
		if err != nil {
			return timing{}, err
		}
		if len(passing) > 0 {
			break
		}
		q.WaitIndex = meta.LastIndex
	}
	passed := time.Now()
	return timing{total: millis(passed.Sub(began)), steps: map[string]float64{
		"nomad job run": millis(submitted.Sub(began)), "check": millis(passed.Sub(submitted)),
	}}, s.newest(ctx, h)
}

// newest notes the engine's latest allocation.
func (s *script) newest(ctx context.Context, h *handJob) error {
	allocs, _, err := s.floor.nomad.Jobs().Allocations(*h.job.ID, false, (&api.QueryOptions{}).WithContext(ctx))
	var newest uint64
	for _, a := range allocs {
		if a.CreateIndex > newest {
			newest, h.allocID = a.CreateIndex, a.ID
		}
	}
	return err
}

// end stops the job and waits until the process is gone.
func (s *script) end(ctx context.Context, h *handJob) error {
	if err := s.command(ctx, "job", "stop", "-detach", *h.job.ID); err != nil {
		return err
	}
	return s.floor.gone(ctx, h)
}

// stop returns when the process is gone.
func (s *script) stop(ctx context.Context, h *handJob) (timing, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	if err := s.end(ctx, h); err != nil {
		return timing{}, err
	}
	// The check goes with the process; what starts next is not to find it.
	t := timing{total: millis(time.Since(began))}
	return t, until(ctx, func() error {
		left, _, err := s.consul.Health().Service(*h.job.ID, "", false, (&consul.QueryOptions{}).WithContext(ctx))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("the service of %s is still there", *h.job.ID)
		}
		return err
	})
}

// destroy ends the engine and removes its job, volume and variable.
func (s *script) destroy(ctx context.Context, h *handJob) (timing, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	if err := s.end(ctx, h); err != nil { // Nomad forgets the allocations of a purged job at once
		return timing{}, err
	}
	if err := s.command(ctx, "job", "stop", "-purge", "-detach", *h.job.ID); err != nil {
		return timing{}, err
	}
	if err := until(ctx, func() error { return s.command(ctx, "volume", "delete", "-type", "host", h.volumeID) }); err != nil {
		return timing{}, err
	}
	if err := s.command(ctx, "var", "purge", "nomad/jobs/"+*h.job.ID); err != nil {
		return timing{}, err
	}
	return timing{total: millis(time.Since(began))}, nil
}
