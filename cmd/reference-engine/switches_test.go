package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSwitches has one subtest for each switch of the table in package engine.
func TestSwitches(t *testing.T) {
	t.Parallel()
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { t.Parallel(); f(t) })
	}
	health := func(p *process) int { s, _ := p.call("GET", "/health", "", ""); return s }

	run("exit-at-start", func(t *testing.T) {
		p := spawn(t, t.TempDir(), nil, "exit-at-start")
		if code := p.exitCode(); code != 1 || !strings.Contains(p.log.String(), "cannot start") {
			t.Errorf("exit code %d, stderr %q", code, p.log)
		}
	})
	run("slow-boot", func(t *testing.T) {
		began := time.Now()
		p := start(t, t.TempDir(), nil, "--slow-boot=700ms")
		if d := time.Since(began); d < 700*time.Millisecond {
			t.Errorf("it listened after %v", d)
		}
		if health(p) != 200 {
			t.Error("unhealthy after a slow boot")
		}
	})
	run("slow-boot ends at SIGTERM", func(t *testing.T) {
		dir := t.TempDir()
		p := spawn(t, dir, nil, "slow-boot-1h")
		eventually(t, "it has the brain", func() bool {
			_, err := os.Stat(filepath.Join(dir, "brain.sqlite.lock"))
			return err == nil
		})
		p.signal(syscall.SIGTERM)
		if code := p.exitCode(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	run("never-listen", func(t *testing.T) {
		p := spawn(t, t.TempDir(), nil, "never-listen")
		p.waitLog("running without a port")
		p.signal(syscall.SIGTERM)
		if code := p.exitCode(); code != 0 || strings.Contains(p.log.String(), "msg=listening") {
			t.Errorf("exit code %d, stderr %q", code, p.log)
		}
	})
	run("hang", func(t *testing.T) {
		p := start(t, t.TempDir(), nil, "hang")
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		_, _, err := request(ctx, p.url, "GET", "/health", "", "")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("/health: %v, want no response", err)
		}
		p.remember("the rest works")
		p.signal(syscall.SIGTERM)
		if code := p.exitCode(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	run("fail-health", func(t *testing.T) {
		p := start(t, t.TempDir(), nil, "fail-health")
		if s, body := p.call("GET", "/health", "", ""); s != 503 || !strings.Contains(body, `"status":"failing"`) {
			t.Errorf("%d %s, want 503 failing", s, body)
		}
	})
	run("fail-health later", func(t *testing.T) {
		p := start(t, t.TempDir(), nil, "fail-health-1s")
		// On a slow machine the second may have passed already.
		if s := health(p); s != 200 && !strings.Contains(p.log.String(), "fail-health") {
			t.Errorf("%d at first", s)
		}
		eventually(t, "503", func() bool { return health(p) == 503 })
	})
	run("fail-health-file", func(t *testing.T) {
		dir := t.TempDir()
		p := start(t, dir, nil, "fail-health-file")
		if s := health(p); s != 200 {
			t.Errorf("%d without the file", s)
		}
		file := filepath.Join(dir, "fail-health")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if s := health(p); s != 503 {
			t.Errorf("%d with the file", s)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if s := health(p); s != 200 {
			t.Errorf("%d after the file was removed", s)
		}
	})
	run("crash-after", func(t *testing.T) {
		p := start(t, t.TempDir(), nil, "crash-after-10ms")
		if code := p.exitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
	})
	run("POST /crash", func(t *testing.T) {
		p := start(t, t.TempDir(), nil)
		if s, _ := p.call("POST", "/crash", "wrong", ""); s != 401 || !p.alive() {
			t.Errorf("%d with a wrong key", s)
		}
		if s, body := p.call("POST", "/crash", testKey, ""); s != 0 {
			t.Errorf("%d %s, want no response", s, body)
		}
		if code := p.exitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
	})
	run("busy", func(t *testing.T) {
		p := start(t, t.TempDir(), nil, "busy")
		if s, body := p.call("GET", "/health", "", ""); s != 200 || !strings.Contains(body, `"busy":true`) {
			t.Errorf("%d %s", s, body)
		}
	})
	run("ignore-sigterm", func(t *testing.T) {
		p := start(t, t.TempDir(), nil, "ignore-sigterm")
		for range 3 {
			p.signal(syscall.SIGTERM)
			if s := health(p); s != 200 {
				t.Fatalf("%d after SIGTERM", s)
			}
		}
		p.signal(syscall.SIGKILL)
		p.exitCode()
	})
	run("term-delay", func(t *testing.T) {
		dir := t.TempDir()
		p := start(t, dir, nil, "term-delay-2s")
		began := time.Now()
		p.signal(syscall.SIGTERM)
		eventually(t, "the port is closed", func() bool { return health(p) == 0 })
		if second := spawn(t, dir, nil); second.exitCode() != 1 && p.alive() {
			t.Error("a second process got the brain of a dying one")
		}
		if code := p.exitCode(); code != 0 || time.Since(began) < 2*time.Second {
			t.Errorf("exit code %d after %v", code, time.Since(began))
		}
	})
	run("linger", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "hash")
		if err := os.WriteFile(file, []byte(hashOf("old")), 0o600); err != nil {
			t.Fatal(err)
		}
		p := start(t, dir, []string{"ENGINE_KEY_HASH_FILE=" + file}, "linger-2s")
		p.signal(syscall.SIGTERM)
		p.waitLog("switch linger")
		if err := os.WriteFile(file, []byte(hashOf("new")), 0o600); err != nil {
			t.Fatal(err)
		}
		p.signal(syscall.SIGHUP)
		s, _ := p.call("GET", "/nowhere", "old", "")
		h := health(p)
		if s != 404 || h != 200 {
			t.Errorf("while it lingers: old key %d, health %d, want 404, 200", s, h)
		}
		if code := p.exitCode(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	run("no-reload", func(t *testing.T) {
		p := start(t, t.TempDir(), nil, "no-reload")
		p.signal(syscall.SIGHUP)
		p.waitLog("SIGHUP ignored")
	})
	run("in the executable's name", func(t *testing.T) {
		dir := t.TempDir()
		image := filepath.Join(dir, "reference-engine.v2.fail-health.reload")
		if err := os.Symlink(binary, image); err != nil {
			t.Fatal(err)
		}
		p := spawnAs(t, image, dir, nil)
		p.waitListening()
		if s := health(p); s != 503 {
			t.Errorf("%d, want 503", s)
		}
		if _, body := p.call("GET", "/info", testKey, ""); !strings.Contains(body, `"version":"v2"`) {
			t.Errorf("info %s", body)
		}
	})
	run("in the environment", func(t *testing.T) {
		p := start(t, t.TempDir(), []string{"ENGINE_SWITCHES=busy,fail-health"})
		if s, body := p.call("GET", "/health", "", ""); s != 503 || !strings.Contains(body, `"busy":true`) {
			t.Errorf("%d %s", s, body)
		}
	})
}
