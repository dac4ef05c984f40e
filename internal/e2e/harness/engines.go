package harness

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
)

// Provision creates an engine for a user, and destroys it when the test ends.
func Provision(t *testing.T, c *client.Client, user, version string) *client.Engine {
	t.Helper()
	var e *client.Engine
	Eventually(t, user+" has an engine", func() (err error) {
		e, err = c.Provision(t.Context(), user, version)
		if errors.Is(err, client.ErrEngineAlreadyExists) { // the call was sent again: see patient
			if e, err = c.Engine(t.Context(), user); err == nil && (e.Status != "running" || e.Operation != nil) {
				err = fmt.Errorf("%+v", e)
			}
			return err
		}
		if err != nil && !errors.Is(err, client.ErrEngineBusy) {
			t.Fatal(err)
		}
		return err
	})
	t.Cleanup(func() {
		if _, err := c.Destroy(context.Background(), user); err != nil {
			t.Errorf("destroy %s: %v", user, err)
		}
	})
	return e
}

// ProvisionOnce provisions with an Idempotency-Key.
func ProvisionOnce(ctx context.Context, c *client.Client, key, user, version string) (*client.Engine, error) {
	return c.Provision(ctx, user, version, client.IdempotencyKey(key))
}

// Admit requests an admission with these two options.
func Admit(ctx context.Context, c *client.Client, user string, provision, wake bool) (*client.Admission, error) {
	return c.Admit(ctx, user, client.AdmitOptions{AutoProvision: provision, AutoWake: wake})
}

// EngineIs returns nil if the engine has this status and, unless it is empty, this reason.
func EngineIs(t *testing.T, c *client.Client, user, status, reason string) (*client.Engine, error) {
	t.Helper()
	e, err := c.Engine(t.Context(), user)
	if err == nil && (e.Status != status || reason != "" && e.Reason != reason) {
		err = fmt.Errorf("%s is %s (%s)", user, e.Status, e.Reason)
	}
	return e, err
}

// InState returns nil if a user's engine is in a state. It reads by GET, which does not
// keep the engine awake.
func InState(t *testing.T, c *client.Client, user, want string) error {
	t.Helper()
	return ErrOf(EngineIs(t, c, user, want, ""))
}

// AwaitEngine waits until the engine has a status.
func AwaitEngine(t *testing.T, c *client.Client, user, status, reason string) (e *client.Engine) {
	t.Helper()
	Eventually(t, user+" is "+status, func() (err error) {
		e, err = EngineIs(t, c, user, status, reason)
		return err
	})
	return e
}

// IsNow is like AwaitEngine, for a state that the previous call has already caused: it only
// waits for a view that lags behind.
func IsNow(t *testing.T, c *client.Client, user, status, reason string) *client.Engine {
	t.Helper()
	began := time.Now()
	e := AwaitEngine(t, c, user, status, reason)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("%s is %s after %s", user, status, took)
	}
	return e
}

// RunsAnew waits until an engine runs as a new process, with the same brain.
func RunsAnew(t *testing.T, c *client.Client, user string) {
	t.Helper()
	Eventually(t, "it runs as another process", func() error {
		e, err := EngineIs(t, c, user, "running", "")
		if err != nil {
			return err
		}
		var m Memory
		status, err := EngineCall(t.Context(), e, e.APIKey, http.MethodGet, "/memory/export", nil, &m)
		if err != nil || status != http.StatusOK || len(m.Runs) < 2 {
			return fmt.Errorf("%d, %d runs, %w", status, len(m.Runs), err)
		}
		return nil
	})
}

// ListEngines requests a page with a raw query string.
func ListEngines(t *testing.T, c *client.Client, query string) EnginePage {
	t.Helper()
	var p EnginePage
	if err := c.Do(t.Context(), http.MethodGet, "/engines"+query, nil, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// EnginePage is a page of GET /engines.
type EnginePage struct {
	Engines []map[string]any
	Total   int
	Next    string `json:"next_cursor"`
}

// EngineCall calls an engine as its user's product would. A frozen engine accepts the
// connection and never responds, so the call has a deadline.
func EngineCall(ctx context.Context, e *client.Engine, key, method, path string, body any, out any) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	c := &client.Client{BaseURL: e.URL, HTTP: &http.Client{Transport: engineTransport{key}}}
	err := c.Do(ctx, method, path, body, out)
	var bad *client.Error
	if errors.As(err, &bad) {
		return bad.Status, nil
	}
	if err != nil {
		return 0, err
	}
	return http.StatusOK, nil
}

type engineTransport struct{ key string }

func (e engineTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("X-Engine-Key", e.key)
	r.Close = true
	return http.DefaultTransport.RoundTrip(r)
}

// Remember stores a text in an engine's brain.
func Remember(t *testing.T, e *client.Engine, key, what string) {
	t.Helper()
	status, err := EngineCall(t.Context(), e, key, http.MethodPost, "/execute", map[string]string{"input": what}, nil)
	if err != nil || status != http.StatusOK {
		t.Fatalf("execute: status %d, %v", status, err)
	}
}

// Memory is the exported brain of an engine.
type Memory struct {
	Memories []struct{ Input string }
	Runs     []struct {
		PID       int        `json:"pid"`
		StartedAt time.Time  `json:"started_at"`
		EndedAt   *time.Time `json:"ended_at"`
	}
}

// Export reads an engine's brain.
func Export(t *testing.T, e *client.Engine, key string) Memory {
	t.Helper()
	var m Memory
	status, err := EngineCall(t.Context(), e, key, http.MethodGet, "/memory/export", nil, &m)
	if err != nil || status != http.StatusOK {
		t.Fatalf("export: status %d, %v", status, err)
	}
	return m
}

// Knows returns nil if the brain contains what Remember stored.
func (m Memory) Knows(what string) error {
	for _, x := range m.Memories {
		if x.Input == what {
			return nil
		}
	}
	return fmt.Errorf("the brain does not know %q: %+v", what, m.Memories)
}

// CrashEngine makes an engine's process exit as after a bug.
func CrashEngine(t *testing.T, e *client.Engine) {
	t.Helper()
	// The process exits without a response.
	if status, err := EngineCall(t.Context(), e, e.APIKey, http.MethodPost, "/crash", nil, nil); err == nil {
		t.Fatalf("crash returned %d", status)
	}
}

// Processes counts the processes of an engine on the machine, whether or not Nomad knows
// them.
func Processes(stack *devstack.Stack, engineID string) (n int) {
	for _, task := range stack.Tasks() {
		if task.JobID == "engine-"+engineID {
			n++
		}
	}
	return n
}

// WatchBrains fails the test if an engine has two processes at any time.
func WatchBrains(t *testing.T, stack *devstack.Stack) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		told := map[string]bool{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			of := map[string][]devstack.Task{}
			for _, task := range stack.Tasks() {
				if strings.HasPrefix(task.JobID, "engine-") {
					of[task.JobID] = append(of[task.JobID], task)
				}
			}
			for job, tasks := range of {
				if len(tasks) > 1 && !told[job] {
					told[job] = true
					t.Errorf("%s has %d processes: %+v", job, len(tasks), tasks)
				}
			}
		}
	})
	t.Cleanup(func() { cancel(); watching.Wait() })
}

// ProcessState returns the kernel's letter for a process's state; "" if the process does
// not exist.
func ProcessState(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

// HasProviderKey returns an error unless an engine's process has this LLM_API_KEY.
func HasProviderKey(ctx context.Context, e *client.Engine, want string) error {
	var env struct {
		Variables map[string]struct {
			SHA256 string `json:"sha256"`
		}
	}
	if _, err := EngineCall(ctx, e, e.APIKey, http.MethodGet, "/env?names=LLM_API_KEY", nil, &env); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(want))
	if env.Variables["LLM_API_KEY"].SHA256 != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("it does not have the %s key", want)
	}
	return nil
}

// NodeOf returns the node that an engine's job is bound to.
func NodeOf(job *nomad.Job) string {
	for _, c := range job.TaskGroups[0].Constraints {
		if c.LTarget == "${node.unique.id}" {
			return c.RTarget
		}
	}
	return ""
}

// KeyIs fails unless an engine accepts a key, or refuses it if want is false.
func KeyIs(t *testing.T, e *client.Engine, key string, want bool) {
	t.Helper()
	status, err := EngineCall(t.Context(), e, key, http.MethodGet, "/info", nil, nil)
	if err != nil || (status == http.StatusOK) != want {
		t.Errorf("the engine returns %d, %v; it should accept the key: %t", status, err, want)
	}
}
