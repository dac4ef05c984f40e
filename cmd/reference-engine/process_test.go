package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestKillKeepsWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := []string{}
	for round := range 3 {
		p := start(t, dir, nil)
		for i := range 5 {
			in := fmt.Sprintf("round %d, %d ☃", round, i)
			p.remember(in)
			want = append(want, in)
		}
		p.signal(syscall.SIGKILL)
		if code := p.exitCode(); code != -1 {
			t.Fatalf("exit code %d after SIGKILL", code)
		}
	}
	p := start(t, dir, nil)
	if diff := cmp.Diff(want, p.inputs()); diff != "" {
		t.Errorf("memories (-want +got):\n%s", diff)
	}
	runs := p.export().Runs
	if len(runs) != 4 {
		t.Fatalf("%d runs, want 4", len(runs))
	}
	for i, r := range runs {
		if r.EndedAt != nil {
			t.Errorf("run %d has an end, but was killed or runs", i)
		}
	}
	if runs[3].PID != p.cmd.Process.Pid {
		t.Errorf("last run's pid %d, want %d", runs[3].PID, p.cmd.Process.Pid)
	}
}

func TestTermClosesTheBrain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, dir, nil)
	p.remember("one")
	p.signal(syscall.SIGTERM)
	if code := p.exitCode(); code != 0 {
		t.Fatalf("exit code %d, want 0", code)
	}
	if _, err := os.Stat(filepath.Join(dir, "brain.sqlite-wal")); !os.IsNotExist(err) {
		t.Errorf("the write-ahead log is still there: %v", err)
	}
	p = start(t, dir, nil)
	if diff := cmp.Diff([]string{"one"}, p.inputs()); diff != "" {
		t.Error(diff)
	}
	runs := p.export().Runs
	if len(runs) != 2 || runs[0].EndedAt == nil || runs[0].EndedAt.Before(runs[0].StartedAt) ||
		runs[0].EndedAt.After(runs[1].StartedAt) || runs[1].EndedAt != nil {
		t.Errorf("runs overlap or have wrong ends: %+v", runs)
	}
}

// TestTermFinishesTheRequestUnderWay sends SIGTERM between the header and the body of a
// request.
func TestTermFinishesTheRequestUnderWay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, dir, nil)
	addr := strings.TrimPrefix(p.url, "http://")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	body := `{"input":"in flight"}`
	fmt.Fprintf(conn, "POST /execute HTTP/1.1\r\nHost: e\r\nX-Engine-Key: %s\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", testKey, len(body))
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v: want 100 Continue", line, err)
	}
	// A connection without a request must not delay the end.
	silent, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p.signal(syscall.SIGTERM)
	eventually(t, "the port is closed", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if !p.alive() {
		t.Fatal("the engine left with a request under way")
	}
	answered := time.Now()
	fmt.Fprint(conn, body)
	var answer strings.Builder
	for line := ""; err == nil; line, err = r.ReadString('\n') {
		answer.WriteString(line)
	}
	if !strings.Contains(answer.String(), "HTTP/1.1 200 OK") {
		t.Errorf("response %q, want 200", answer.String())
	}
	if code := p.exitCode(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if d := time.Since(answered); d > 4*time.Second {
		t.Errorf("the end took %v: it waited for the silent connection", d)
	}
	if got := start(t, dir, nil).inputs(); len(got) != 1 {
		t.Errorf("memories %q, want the one", got)
	}
}

func TestSecondProcessOnOneBrain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := start(t, dir, nil)
	second := spawn(t, dir, nil)
	if code := second.exitCode(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if want := fmt.Sprintf("held by another process: %s", filepath.Join(dir, "brain.sqlite.lock")); !strings.Contains(second.log.String(), want) ||
		!strings.Contains(second.log.String(), fmt.Sprintf("pid %d on", first.cmd.Process.Pid)) {
		t.Errorf("log %q does not name the process that holds the brain", second.log)
	}
	if n := len(first.export().Runs); n != 1 {
		t.Errorf("%d runs in the brain, want 1: the second one got at it", n)
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "hash")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(hashOf("key 1") + "\n")
	// The variable contains another key: the file must take precedence.
	p := start(t, dir, []string{"ENGINE_KEY_HASH_FILE=" + file})
	status := func(key string) int { s, _ := p.call("GET", "/nowhere", key, ""); return s }
	reloads := 0
	hup := func(says string) {
		t.Helper()
		p.signal(syscall.SIGHUP)
		reloads++
		eventually(t, "SIGHUP handled", func() bool { return strings.Count(p.log.String(), "SIGHUP: ") == reloads })
		lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
		if last := lines[len(lines)-1]; !strings.Contains(last, says) {
			t.Errorf("log %q, want %q", last, says)
		}
	}
	want := func(key string, code int) {
		t.Helper()
		if got := status(key); got != code {
			t.Errorf("%s: %d, want %d", key, got, code)
		}
	}
	want("key 1", 404)
	want(testKey, 401)

	write(hashOf("key 2"))
	want("key 1", 404) // nothing happens without the signal
	hup("read again")
	want("key 1", 401)
	want("key 2", 404)

	for name, content := range map[string]string{
		"empty": "", "short": "abc", "not hex": strings.Repeat("z", 64),
		"upper case": strings.ToUpper(hashOf("key 3")), "long": hashOf("key 3") + "00",
	} {
		write(content)
		hup("keeping the old one")
		if status("key 2") != 404 {
			t.Errorf("%s file: the old key no longer works", name)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	hup("keeping the old one")
	want("key 2", 404)
	write(hashOf("key 3"))
	hup("read again")
	want("key 3", 404)
	want("key 2", 401)
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	corrupt := func(content []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "brain.sqlite"), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		prepare func(*testing.T, string)
		env     []string
		want    string
	}{
		"no hash":         {env: []string{"ENGINE_KEY_HASH="}, want: "set ENGINE_KEY_HASH or"},
		"short hash":      {env: []string{"ENGINE_KEY_HASH=abcd"}, want: "64 lower-case hex"},
		"missing file":    {env: []string{"ENGINE_KEY_HASH_FILE=/nonexistent"}, want: "ENGINE_KEY_HASH_FILE"},
		"no brain path":   {env: []string{"SQLITE_DB_PATH="}, want: "SQLITE_DB_PATH is not set"},
		"no volume":       {env: []string{"SQLITE_DB_PATH=/nonexistent/brain.sqlite"}, want: "lock the brain"},
		"bad port":        {env: []string{"PORT=70000"}, want: "PORT"},
		"unknown switch":  {env: []string{"ENGINE_SWITCHES=slow-bot"}, want: "unknown switch"},
		"not a brain":     {prepare: corrupt([]byte(strings.Repeat("not a database ", 1000))), want: "corrupt or not a brain"},
		"truncated brain": {prepare: corrupt(append([]byte("SQLite format 3\x00"), make([]byte, 50)...)), want: "corrupt or not a brain"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if tt.prepare != nil {
				tt.prepare(t, dir)
			}
			p := spawn(t, dir, tt.env)
			if code := p.exitCode(); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if !strings.Contains(p.log.String(), tt.want) {
				t.Errorf("stderr %q, want %q", p.log, tt.want)
			}
		})
	}
	t.Run("port taken", func(t *testing.T) {
		t.Parallel()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		p := spawn(t, t.TempDir(), []string{"PORT=" + port})
		if code := p.exitCode(); code != 1 || !strings.Contains(p.log.String(), "in use") {
			t.Errorf("exit code %d, stderr %q", code, p.log)
		}
	})
}
