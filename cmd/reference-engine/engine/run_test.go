package engine

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestRun runs an engine's whole life in this process, so that goleak detects what Run
// leaves behind.
func TestRun(t *testing.T) {
	t.Parallel()
	vars := map[string]string{
		"HOST": "127.0.0.1", "PORT": "0",
		"ENGINE_KEY_HASH": hashOf(testKey),
		"SQLITE_DB_PATH":  filepath.Join(t.TempDir(), "brain.sqlite"),
	}
	cfg, err := LoadConfig([]string{"e"}, func(n string) (string, bool) { v, ok := vars[n]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reload := make(chan os.Signal)
	logged, log := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, cfg, slog.New(slog.NewTextHandler(log, nil)), reload)
		log.Close()
	}()
	addr := regexp.MustCompile(`msg=listening addr=(\S+)`)
	lines := bufio.NewScanner(logged)
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	asked := false
	for lines.Scan() { // until Run has returned
		m := addr.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		go func() { _, _ = io.Copy(io.Discard, logged) }()
		resp, err := (&http.Client{Transport: tr}).Get("http://" + m[1] + "/health")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		asked = resp.StatusCode == http.StatusOK
		reload <- os.Interrupt // any signal will do
		cancel()
		break
	}
	if err := <-ended; err != nil || !asked {
		t.Errorf("Run: %v, answered: %t", err, asked)
	}
	if _, err := OpenBrain(t.Context(), filepath.Join(t.TempDir(), "no", "brain.sqlite")); err == nil {
		t.Error("a brain in a missing directory opened: a missing mount would go unnoticed")
	}
}
