package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// shell runs the command line like a script, without a terminal.
type shell struct {
	t    *testing.T
	orch string
	env  []string
}

func (s *shell) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.t.Context(), s.orch, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.t.TempDir()}, s.env...)
	return cmd
}

// run returns the output of a command, and fails unless it exits with this code.
func (s *shell) run(code int, args ...string) (stdout, stderr string) {
	s.t.Helper()
	cmd := s.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		s.t.Fatalf("orch %v: exit code %d, want %d\n%s%s", args, got, code, out.String(), errs.String())
	}
	if code == 0 && errs.Len() > 0 {
		s.t.Errorf("orch %v writes to stderr: %s", args, errs.String())
	}
	return out.String(), errs.String()
}

// json runs a command with -json and decodes its output.
func (s *shell) json(into any, args ...string) {
	s.t.Helper()
	out, _ := s.run(0, append(args, "-json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		s.t.Fatalf("orch %v prints %q: %v", args, out, err)
	}
}

// fails runs a command, and fails unless the service refuses it with this code.
func (s *shell) fails(code client.Code, args ...string) {
	s.t.Helper()
	out, errs := s.run(1, args...)
	if out != "" || !strings.Contains(errs, "code "+string(code)+", request ") {
		s.t.Errorf("orch %v: stdout %q, stderr %q, want %s", args, out, errs, code)
	}
}

func (s *shell) shows(out string, words ...string) {
	s.t.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			s.t.Errorf("%q is not in:\n%s", w, out)
		}
	}
}

// lines starts a command that prints one object per line, and returns the objects as they
// arrive.
func lines[T any](t *testing.T, cmd *exec.Cmd) <-chan T {
	t.Helper()
	stream, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	objects := make(chan T, 100)
	go func() {
		defer close(objects)
		for lines := bufio.NewScanner(stream); lines.Scan(); {
			var object T
			if err := json.Unmarshal(lines.Bytes(), &object); err != nil {
				t.Error(err)
			}
			objects <- object
		}
	}()
	return objects
}

// await reads objects until one satisfies is.
func await[T any](t *testing.T, objects <-chan T, what string, is func(T) bool) {
	t.Helper()
	deadline := time.NewTimer(harness.Patience)
	defer deadline.Stop()
	var seen []T
	for {
		select {
		case object, open := <-objects:
			if !open {
				t.Fatalf("%s: the command ended; it printed %+v", what, seen)
			}
			if seen = append(seen, object); is(object) {
				return
			}
		case <-deadline.C:
			t.Fatalf("%s: the command printed no more than %+v", what, seen)
		}
	}
}

// interrupt ends a command as Ctrl-C does: its exit code is 0.
func interrupt[T any](t *testing.T, cmd *exec.Cmd, objects <-chan T) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for range objects { // until its end
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v ended with %v", cmd.Args[1:], err)
	}
}

// TestCommandLine runs a product and an engine through their life with the built
// executable, against the real service.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1"})
	orch, err := harness.OrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	admin := &shell{t, orch, []string{"ORCH_URL=" + r.URL, "ORCH_ADMIN_KEY=" + harness.AdminKey}}

	// The admin registers a product.
	var made client.Registered
	admin.json(&made, "product", "register", "-name", "ACME Inc.", "-set", "max_engines=2", "acme")
	admin.fails(client.ErrProductSlugExists, "product", "register", "acme")
	out, _ := admin.run(0, "product", "list")
	admin.shows(out, "SLUG", "acme", "ACME Inc.", made.ProductID)
	file := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(file, []byte(`{"max_engines": 3, "allowed_images": ["*"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	admin.run(0, "product", "policy", "-policy", file, "-set", "rate_limit_rpm=600", "acme")
	out, _ = admin.run(0, "product", "policy", made.ProductID)
	admin.shows(out, "max_engines     3", "rate_limit_rpm  600", "allowed_images  *")
	admin.run(0, "product", "policy", "-set", "rate_limit_rpm=", "acme")
	var shown client.Product
	admin.json(&shown, "product", "show", "acme")
	if shown.Policy.RateLimitRPM != nil || shown.Policy.MaxEngines == nil || *shown.Policy.MaxEngines != 3 {
		t.Errorf("the policy is %+v", shown.Policy)
	}
	admin.fails(client.ErrProductNotFound, "product", "show", "nobody")
	out, _ = admin.run(0, "status")
	admin.shows(out, "Service", "nomad", "vault", "acme", "Pooled volumes", "Warm engines", "Unreachable volumes")

	// The product creates an engine while somebody watches.
	product := &shell{t, orch, []string{"ORCH_URL=" + r.URL, "ORCH_PLATFORM_KEY=" + made.PlatformAPIKey}}
	watch := product.command("audit", "tail", "-f", "-json", "-n", "0")
	rows := lines[client.AuditEntry](t, watch)

	const user = "alice@example.com"
	out, errs := product.run(1, "engine", "admit", user)
	product.shows(out, "Not admitted", client.DeniedNotFound)
	if errs != "" {
		t.Errorf("a denial is a result, but stderr is %q", errs)
	}
	out, _ = product.run(0, "engine", "provision", "-idempotency-key", "k", user)
	product.shows(out, "Status  running", "URL", "Key     sk-sept-")
	var e, again client.Engine
	product.json(&again, "engine", "provision", "-idempotency-key", "k", user)
	product.json(&e, "engine", "show", "-key", user)
	if e.APIKey != again.APIKey || e.EngineID != again.EngineID || !strings.Contains(out, e.APIKey) {
		t.Errorf("with one idempotency key: %s, then %+v, shown as %+v", out, again, e)
	}
	harness.Remember(t, &e, e.APIKey, "by the command line")
	product.fails(client.ErrEngineAlreadyExists, "engine", "provision", user)
	product.fails(client.ErrEngineBootFailed, "engine", "provision", "-engine-version", "reference-engine.exit-at-start", "bad")
	product.fails(client.ErrEngineNotFound, "engine", "start", "nobody")

	// Somebody watches the user's engine, and waits for it.
	changes := product.command("engine", "watch", "-json", user)
	states := lines[client.Engine](t, changes)
	await(t, states, "running", func(e client.Engine) bool { return e.Status == "running" && e.UserID == user })
	product.run(0, "engine", "wait", user)
	product.run(0, "engine", "wait", "-for", "running", user)
	if _, errs := product.run(1, "engine", "wait", "bad"); !strings.Contains(errs, string(client.ErrEngineBootFailed)) {
		t.Errorf("after a failed provision a wait prints %q", errs)
	}
	if _, errs := product.run(124, "engine", "wait", "-for", "sleeping", "-timeout", "5s", user); !strings.Contains(errs, "is running") {
		t.Errorf("a wait that times out prints %q", errs)
	}

	// Keys are shown only on request.
	for _, hidden := range [][]string{{"engine", "show", user}, {"engine", "show", "-json", user}, {"engine", "admit", user}, {"engine", "admit", "-json", user}, {"engine", "wait", "-json", user}, {"engine", "list"}, {"engine", "list", "-json"}, {"status"}, {"audit", "tail"}} {
		if out, _ := product.run(0, hidden...); strings.Contains(out, "sk-sept-") {
			t.Errorf("orch %v shows a key", hidden)
		}
	}
	out, _ = product.run(0, "engine", "admit", "-key", "-auto-wake", user)
	product.shows(out, e.APIKey, e.URL)
	out, _ = product.run(0, "engine", "list", "-status", "failed")
	product.shows(out, "bad", "crashed")
	if strings.Contains(out, user) {
		t.Errorf("the failed ones are\n%s", out)
	}
	var list client.EngineList
	product.json(&list, "engine", "list", "-n", "1")
	if list.Total != 2 || len(list.Engines) != 1 || list.Engines[0].UserID != user {
		t.Errorf("listed as %+v", list)
	}
	var st client.FleetStatus
	product.json(&st, "status")
	if st.Total != 2 || st.ByStatus["running"] != 1 || st.Health != "critical" {
		t.Errorf("status %+v", st)
	}

	var rotated struct {
		NewAPIKey string `json:"new_api_key"`
	}
	product.json(&rotated, "engine", "rotate-key", user)
	if err := harness.Export(t, &e, rotated.NewAPIKey).Knows("by the command line"); err != nil {
		t.Error(err)
	}
	product.run(0, "engine", "stop", user)
	await(t, states, "stopped", func(e client.Engine) bool { return e.Status == "stopped" })
	product.fails(client.ErrEngineNotRunning, "engine", "stop", user)
	out, _ = product.run(0, "engine", "start", user)
	product.shows(out, user, "running", "http://")

	// A command that cannot be undone needs a confirmation, and there is no terminal.
	_, errs = product.run(2, "engine", "destroy", user)
	product.shows(errs, "-yes")
	product.run(0, "engine", "show", user)
	product.run(0, "engine", "destroy", "-yes", user)
	await(t, states, "destroyed", func(e client.Engine) bool { return e.Status == "destroyed" })
	interrupt(t, changes, states)
	product.run(0, "engine", "wait", "-for", "destroyed", user)
	product.run(0, "engine", "destroy", "bad", "-yes")
	product.fails(client.ErrEngineNotFound, "engine", "show", user)

	out, _ = product.run(0, "audit", "tail", "-user", user, "-since", "1h", "-action", "destroy")
	if strings.Count(out, "\n") != 1 {
		t.Errorf("of one destroy there are the rows\n%s", out)
	}
	seen := map[string]bool{}
	await(t, rows, "the rows of two provisions and a destroy", func(row client.AuditEntry) bool {
		if row.DurationMS != nil {
			seen[row.Action+" "+row.Outcome] = true
		}
		return seen["provision ok"] && seen["provision ENGINE_BOOT_FAILED"] && seen["destroy ok"]
	})
	interrupt(t, watch, rows)

	// A context contains the address and the sources of the keys.
	secret := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(secret, []byte(made.PlatformAPIKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	operator := &shell{t, orch, []string{"XDG_CONFIG_HOME=" + t.TempDir(), "THE_ADMINS_KEY=" + harness.AdminKey}}
	out, _ = operator.run(0, "context", "list")
	operator.shows(out, "no contexts")
	operator.run(0, "context", "add", "-address", "http://"+harness.FreeAddr(t), "elsewhere")
	operator.run(0, "context", "add", "-address", r.URL, "-product", "acme", "-platform-key-file", secret, "-admin-key-env", "THE_ADMINS_KEY", "here")
	operator.run(2, "engine", "list")
	out, _ = operator.run(0, "engine", "list", "-context", "here")
	operator.shows(out, "no engines")
	operator.run(0, "context", "use", "here")
	out, _ = operator.run(0, "product", "show")
	operator.shows(out, "acme", made.ProductID)
	out, _ = operator.run(0, "status", "-admin")
	operator.shows(out, "Pooled volumes")
	out, _ = operator.run(0, "provider-keys", "status")
	operator.shows(out, "Status", "Pending")
	if out, _ = operator.run(0, "context", "list", "-json"); strings.Contains(out, made.PlatformAPIKey) || strings.Contains(out, harness.AdminKey) {
		t.Errorf("a key is in the contexts:\n%s", out)
	}

	// The admin replaces the key and deletes the product.
	out, _ = admin.run(0, "product", "rotate-key", "acme")
	if strings.Contains(out, made.PlatformAPIKey) {
		t.Error("the new platform key is the old one")
	}
	admin.shows(out, "\nexport ORCH_PLATFORM_KEY=pk-sept-")
	product.fails(client.ErrInvalidPlatformKey, "status")
	admin.run(2, "product", "delete", "acme")
	admin.run(0, "product", "delete", "-yes", "acme")
	out, _ = admin.run(0, "audit", "tail", "-product", made.ProductID, "-n", "1")
	admin.shows(out, "product_delete", "ok", "admin")

	// No service is listening.
	nobody := &shell{t, orch, []string{"ORCH_URL=http://" + harness.FreeAddr(t), "ORCH_PLATFORM_KEY=k"}}
	_, errs = nobody.run(1, "status")
	nobody.shows(errs, "connection refused", "ORCH_URL")
	if _, errs := product.run(2, "engine", "keep-awake", "-for", "2h", user); !strings.Contains(errs, fmt.Sprint(time.Hour)) {
		t.Errorf("a keep-awake for too long: %q", errs)
	}
}
