package cluster

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/jobs"
)

// roundTrip is a function as a transport.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// isReadBack reports whether a request is the second one of Register.
func isReadBack(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/versions") }

func TestRegister(t *testing.T) {
	stack, err := devstack.Start(t.Context(), devstack.Config{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stack.Stop(); err != nil {
			t.Error(err)
		}
	}()
	transport := &http.Transport{MaxIdleConnsPerHost: 32}
	defer transport.CloseIdleConnections()
	// over returns a Cluster whose requests pass through a transport.
	over := func(t *testing.T, through http.RoundTripper) *Cluster {
		t.Helper()
		client, err := api.NewClient(&api.Config{Address: stack.NomadAddr, HttpClient: &http.Client{Transport: through}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		return New(client, "default", Mkdir, hclog.NewNullLogger())
	}
	c := over(t, transport)

	t.Run("OK", func(t *testing.T) {
		first, err := c.Register(t.Context(), markedJob("ok", "one"), 0)
		if err != nil {
			t.Fatal(err)
		}
		second, err := c.Register(t.Context(), markedJob("ok", "two"), first)
		if err != nil {
			t.Fatal(err)
		}
		job, err := c.Job(t.Context(), "ok")
		if err != nil || *job.JobModifyIndex != second || jobs.Mark(job) != "two" {
			t.Errorf("the job is not the one of the second registration: %v", err)
		}
	})
	t.Run("OK no mark", func(t *testing.T) {
		first, err := c.Register(t.Context(), markedJob("unmarked", ""), 0)
		if err != nil {
			t.Fatal(err)
		}
		changed := markedJob("unmarked", "")
		changed.SetMeta("changed", "yes")
		if _, err := c.Register(t.Context(), changed, first); err != nil {
			t.Error(err)
		}
	})
	t.Run("OK nothing to change", func(t *testing.T) {
		first, err := c.Register(t.Context(), markedJob("same", "one"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := c.Register(t.Context(), markedJob("same", "one"), first); err != nil || again != first {
			t.Errorf("got index %d, %v, want %d again", again, err, first)
		}
	})
	t.Run("ErrConflict", func(t *testing.T) {
		first, err := c.Register(t.Context(), markedJob("conflict", "one"), 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []uint64{0, first - 1, first + 1} {
			if _, err := c.Register(t.Context(), markedJob("conflict", "two"), at); !errors.Is(err, ErrConflict) {
				t.Errorf("at index %d of %d: got %v", at, first, err)
			}
		}
	})
	// Changes between the registration and the read-back.
	for name, between := range map[string]func(id string) error{
		"ErrConflict replaced": func(id string) error {
			_, _, err := c.client.Jobs().Register(markedJob(id, "other"), nil)
			return err
		},
		"ErrConflict purged": func(id string) error { return c.Purge(t.Context(), id) },
	} {
		t.Run(name, func(t *testing.T) {
			id := strings.ReplaceAll(name, " ", "-")
			meddled := over(t, roundTrip(func(r *http.Request) (*http.Response, error) {
				if isReadBack(r) {
					if err := between(id); err != nil {
						t.Error(err)
					}
				}
				return transport.RoundTrip(r)
			}))
			if _, err := meddled.Register(t.Context(), markedJob(id, "mine"), 0); !errors.Is(err, ErrConflict) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("ErrUnavailable not read back", func(t *testing.T) {
		cut := over(t, roundTrip(func(r *http.Request) (*http.Response, error) {
			if isReadBack(r) {
				return nil, errors.New("cut")
			}
			return transport.RoundTrip(r)
		}))
		if _, err := cut.Register(t.Context(), markedJob("cut", "mine"), 0); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrConflict) {
			t.Errorf("got %v", err)
		}
		if job, err := c.Job(t.Context(), "cut"); err != nil || jobs.Mark(job) != "mine" {
			t.Errorf("it was not registered: %v", err)
		}
	})
	// The requests of a registration that ends a process, in addition to those of one that
	// starts one.
	t.Run("AwaitsCommits", func(t *testing.T) {
		var calls []string
		watched := over(t, roundTrip(func(r *http.Request) (*http.Response, error) {
			calls = append(calls, r.Method+" "+r.URL.Path)
			return transport.RoundTrip(r)
		}))
		v := api.NewVariable("nomad/jobs/await")
		v.Items = api.VariableItems{hashItem: "hash"}
		if _, _, err := c.client.Variables().Create(v, nil); err != nil {
			t.Fatal(err)
		}
		const write, wait, read = "PUT /v1/jobs", "DELETE /v1/var/nomad/jobs/await", "GET /v1/job/await/versions"
		var at uint64
		for _, tc := range []struct {
			count int
			want  []string
		}{{1, []string{write, read}}, {0, []string{write, wait, read}}} {
			job := markedJob("await", fmt.Sprint("count-", tc.count))
			job.TaskGroups[0].Count, calls = &tc.count, nil
			var err error
			if at, err = watched.Register(t.Context(), job, at); err != nil || !slices.Equal(calls, tc.want) {
				t.Errorf("count %d: %v: calls %q, want %q", tc.count, err, calls, tc.want)
			}
		}
		if _, _, err := c.client.Variables().Read("nomad/jobs/await", nil); err != nil {
			t.Errorf("the variable was deleted: %v", err)
		}
	})
	t.Run("OneWinner", func(t *testing.T) { oneWinner(t, c) })
}

// oneWinner repeatedly lets several writers register a job at one index. A Nomad server
// before 2.0.1 accepts more than one of them in many rounds. A winner that is replaced
// afterwards cannot be noticed by confirm; with a count of 0 that only happens if a server
// was delayed.
func oneWinner(t *testing.T, c *Cluster) {
	const (
		rounds  = 100
		writers = 5 // all their versions are kept, because a server keeps six
		atMost  = 10 * time.Second
	)
	// Half of the jobs request a process, for which no node is suitable.
	jobOf := func(id, mark string, count int) *api.Job {
		job := markedJob(id, mark)
		job.Constrain(api.NewConstraint("${node.unique.name}", "=", "none"))
		job.TaskGroups[0].Count = &count
		return job
	}
	raced, unwon, done := 0, 0, 0
	replaced := map[int]int{} // by count
	for began := time.Now(); done < rounds && time.Since(began) < atMost; done++ {
		id, at, count := fmt.Sprint("race-", done), uint64(0), done/2%2
		if done%2 == 1 { // half of the jobs exist before
			first, err := c.Register(t.Context(), jobOf(id, "before", count), 0)
			if err != nil {
				t.Fatal(err)
			}
			at = first
		}
		type win struct{ index, writer uint64 }
		wins := make(chan win, writers)
		var ready, ended sync.WaitGroup
		ready.Add(writers)
		for w := range uint64(writers) {
			ended.Go(func() {
				job := jobOf(id, fmt.Sprint("writer-", w), count)
				ready.Done()
				ready.Wait()
				index, err := c.Register(t.Context(), job, at)
				switch {
				case err == nil:
					wins <- win{index, w}
				case !errors.Is(err, ErrConflict):
					t.Error(err)
				}
			})
		}
		ended.Wait()
		close(wins)
		versions, _, _, err := c.client.Jobs().Versions(id, false, c.read(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		marks := map[uint64]string{}
		for _, v := range versions {
			if *v.JobModifyIndex > at {
				marks[*v.JobModifyIndex] = jobs.Mark(v)
			}
		}
		if len(marks) > 1 {
			raced++
		}
		if len(wins) == 0 {
			unwon++
		}
		if len(wins) > 1 {
			t.Errorf("round %d: %d registrations at index %d succeeded", done, len(wins), at)
		}
		for w := range wins {
			if got, want := marks[w.index], fmt.Sprint("writer-", w.writer); got != want {
				t.Errorf("round %d: the job at index %d was written by %q, but %q was told that it wrote it", done, w.index, got, want)
			}
			if slices.Max(slices.Collect(maps.Keys(marks))) > w.index {
				replaced[count]++
			}
		}
		// The jobs are not purged: a server of version 1.11.3 crashes if a job is purged
		// while a plan of it is applied.
	}
	t.Logf("in %d of %d rounds Nomad committed more than one registration at one index; in %d nobody won, in %d the winner was replaced afterwards, %d of them of jobs with a count of 0", raced, done, unwon, replaced[0]+replaced[1], replaced[0])
}
