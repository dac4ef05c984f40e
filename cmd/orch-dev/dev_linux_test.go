package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/devstack"
)

// system is a directory with the command and its reference engine.
func system(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "orch-dev"), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "../reference-engine", "../orch-brain")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the reference engine and the worker: %v\n%s", err, out)
	}
	if err := os.Link(filepath.Join(dir, "reference-engine"), filepath.Join(dir, "reference-engine.never-listen")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start runs a command of the system on free ports, in its directory.
func start(t *testing.T, dir string, args ...string) (cmd *exec.Cmd, stdout func() string) {
	t.Helper()
	return startWith(t, dir, nil, args...)
}

// startWith is start with further environment variables.
func startWith(t *testing.T, dir string, vars []string, args ...string) (cmd *exec.Cmd, stdout func() string) {
	t.Helper()
	cmd = exec.Command(filepath.Join(dir, "orch-dev"), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asCommand+"=1", "GORACE=atexit_sleep_ms=0",
		"ORCH_ADDR=127.0.0.1:0", "ORCH_OPS_ADDR=127.0.0.1:0", "ORCH_DEV_NOMAD_PORT=0", "ORCH_DEV_CONSUL_PORT=0", "ORCH_DEV_VAULT_PORT=0")
	cmd.Env = append(cmd.Env, vars...)
	out, err := os.CreateTemp(dir, "stdout-")
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails if it has ended
		_ = cmd.Wait()
		_ = out.Close()
		if t.Failed() {
			t.Logf("orch-dev %v said\n%s", args, stderr.String())
		}
	})
	return cmd, func() string {
		b, err := os.ReadFile(out.Name())
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	const limit = 3 * time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// awaitEnv waits until the content of the env file differs from before, and reads it with a
// shell.
func awaitEnv(t *testing.T, dir string, before map[string]string) map[string]string {
	t.Helper()
	file := filepath.Join(dir, stateDir, envName)
	var vars map[string]string
	eventually(t, "the system is ready", func() error {
		out, err := exec.Command("env", "-i", "sh", "-c", ". "+file+"; env").Output()
		if err != nil {
			return err
		}
		vars = map[string]string{}
		for line := range strings.Lines(string(out)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			vars[name] = value
		}
		if vars["ORCH_PLATFORM_KEY"] == before["ORCH_PLATFORM_KEY"] {
			return errors.New("it is the file of before")
		}
		return nil
	})
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v; want mode 0600", file, info, err)
	}
	for _, name := range []string{"ORCH_URL", "ORCH_OPS_URL", "ORCH_ADMIN_KEY", "ORCH_PLATFORM_KEY", "NOMAD_ADDR", "CONSUL_HTTP_ADDR", "VAULT_ADDR", "VAULT_TOKEN"} {
		if vars[name] == "" {
			t.Errorf("%s is not set", name)
		}
	}
	return vars
}

// TestDev kills a system, starts another one in the same directory, tries the commands that
// it prints, and interrupts it during a boot that never ends. Nothing of it is left.
func TestDev(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal("curl is missing: install it (apt-get install curl)")
	}
	dir := system(t)
	killed, _ := start(t, dir, "dev", "-open")
	before := awaitEnv(t, dir, nil)
	if !strings.HasPrefix(before["NOMAD_ADDR"], "http://") || before["NOMAD_TOKEN"] != "" || before["NOMAD_CACERT"] != "" {
		t.Errorf("with -open Nomad is at %s, with a token or a CA", before["NOMAD_ADDR"])
	}
	commandLines(t, dir)
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()
	gone := func() error {
		_, err := os.Stat(filepath.Join(dir, stateDir, envName))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.Join(errors.New("it is still there"), err)
	}
	eventually(t, "the env file of the killed system goes", gone)

	cmd, stdout := start(t, dir, "dev")
	vars := awaitEnv(t, dir, before)
	eventually(t, "the invitation", func() error {
		if !strings.Contains(stdout(), "Ctrl-C ends everything") {
			return errors.New(stdout())
		}
		return nil
	})
	for _, name := range []string{"NOMAD_ADDR", "CONSUL_HTTP_ADDR", "VAULT_ADDR"} {
		if !strings.HasPrefix(vars[name], "https://") {
			t.Errorf("%s is %s, want https", name, vars[name])
		}
	}
	for _, name := range []string{"NOMAD_TOKEN", "NOMAD_CACERT", "NOMAD_CLIENT_CERT", "NOMAD_CLIENT_KEY", "NOMAD_NAMESPACE", "CONSUL_HTTP_TOKEN", "CONSUL_CACERT", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY", "VAULT_CACERT"} {
		if vars[name] == "" {
			t.Errorf("%s is not set", name)
		}
	}
	commandLines(t, dir)
	calls := regexp.MustCompile(`(?m)^ +curl -s .*$`).FindAllString(stdout(), -1)
	if len(calls) < 5 {
		t.Errorf("it prints the calls %q", calls)
	}
	for _, call := range calls {
		if out, err := exec.Command("sh", "-c", strings.Replace(call, "curl -s", "curl -sS --fail-with-body", 1)).CombinedOutput(); err != nil {
			t.Errorf("%s\n%v: %s", call, err, out)
		}
	}
	uis := regexp.MustCompile(`http://\S+/ui\S*`).FindAllString(stdout(), -1)
	if len(uis) != 3 {
		t.Fatalf("it prints the web UIs %q", uis)
	}
	// Without a token, the proxy of the web UIs gives no access to data.
	if status, _, err := call(t.Context(), http.MethodGet, strings.Replace(uis[0], "/ui/jobs", "/v1/jobs", 1), "", "", ""); err != nil || status != http.StatusForbidden {
		t.Errorf("Nomad's jobs without a token: %d, %v", status, err)
	}
	for _, ui := range uis {
		if status, body, err := call(t.Context(), http.MethodGet, ui, "", "", ""); err != nil || status != http.StatusOK || !strings.Contains(body, "<html") {
			t.Errorf("%s: %d, %v", ui, status, err)
		}
	}
	key := product(t, vars)
	provision, cancel := context.WithCancel(t.Context())
	defer cancel()
	booting := make(chan struct{})
	go func() {
		defer close(booting)
		_, _, _ = call(provision, http.MethodPost, vars["ORCH_URL"]+"/engines/provision", "X-Platform-Key", key, `{"user_id": "u", "engine_version": "reference-engine.never-listen"}`)
	}()
	eventually(t, "an engine boots", func() error {
		status, body, err := call(t.Context(), http.MethodGet, vars["ORCH_URL"]+"/engines/u", "X-Platform-Key", key, "")
		if err != nil || status != http.StatusOK || !strings.Contains(body, `"provisioning"`) {
			return fmt.Errorf("%d %s %w", status, body, err)
		}
		return nil
	})

	began := time.Now()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	t.Logf("ended in %s", time.Since(began).Round(time.Millisecond))
	<-booting
	if err := gone(); err != nil {
		t.Errorf("the env file: %v", err)
	}
	for _, left := range remains(t, dir) {
		t.Errorf("left behind: %s", left)
	}
}

// commandLines: the agents' own command lines work with the variables in the env file.
func commandLines(t *testing.T, dir string) {
	t.Helper()
	bin, err := devstack.Tools(t.Context(), devstack.ToolOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		bin.Nomad + " job status":                   "engine-",
		bin.Nomad + " var list":                     "nomad/jobs/engine-",
		bin.Consul + " kv get -keys orch/":          "orch/engines/",
		bin.Vault + " kv list orch/engines":         "Keys",
		bin.Vault + " read sys/policies/acl/orch":   "engine-env",
		bin.Consul + " catalog services | grep eng": "engine-",
	} {
		out, err := exec.Command("env", "-i", "sh", "-c", ". "+filepath.Join(dir, stateDir, envName)+"; "+command).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, want %q in\n%s", command, err, want, out)
		}
	}
}

// TestDemo: every step of the demo succeeds.
func TestDemo(t *testing.T) {
	t.Parallel()
	dir := system(t)
	cmd, stdout := start(t, dir, "demo")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("it ended with %v and printed\n%s", err, stdout())
	}
	rows := strings.Split(strings.TrimSpace(stdout()), "\n")
	if want := len((&demo{}).steps()); len(rows) != want {
		t.Errorf("%d rows, want %d:\n%s", len(rows), want, stdout())
	}
	row := regexp.MustCompile(`^ok  \S.* [0-9]+\.[0-9] ms$`)
	for _, r := range rows {
		if !row.MatchString(strings.TrimSpace(r)) {
			t.Errorf("row %q", r)
		}
	}
	for _, left := range remains(t, dir) {
		t.Errorf("left behind: %s", left)
	}
}

// product registers a product that may use any image of the directory, and returns its key.
func product(t *testing.T, vars map[string]string) (key string) {
	t.Helper()
	status, body, err := call(t.Context(), http.MethodPost, vars["ORCH_URL"]+"/products/register", "X-Admin-Key", vars["ORCH_ADMIN_KEY"],
		`{"slug": "any", "display_name": "Any", "policy": {"allowed_images": ["*"]}}`)
	var answer struct {
		Key string `json:"platform_api_key"`
	}
	if err != nil || status != http.StatusOK || json.Unmarshal([]byte(body), &answer) != nil {
		t.Fatalf("register: %d %s %v", status, body, err)
	}
	return answer.Key
}

func call(ctx context.Context, method, url, header, key, body string) (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Close = true
	if header != "" {
		req.Header.Set(header, key)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// remains lists the mounts below dir, and the processes whose command line or
// environment refers to it.
func remains(t *testing.T, dir string) (left []string) {
	t.Helper()
	for _, file := range []string{"cmdline", "environ"} {
		paths, err := filepath.Glob("/proc/[0-9]*/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			// An error means that it has ended, or belongs to another user.
			if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(dir)) {
				left = append(left, path+": "+string(bytes.ReplaceAll(text, []byte{0}, []byte(" "))))
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			left = append(left, line)
		}
	}
	return left
}
