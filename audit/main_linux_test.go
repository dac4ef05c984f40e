package audit

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
)

// childURL is the database of a process that opens it, begins a row, prints the row's id
// and waits to be killed.
const childURL = "AUDIT_TEST_CHILD_URL"

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		os.Exit(child(url))
	}
	code := m.Run()
	if shared.server != nil {
		shared.server.Stop()
	}
	if fuzzing := flag.Lookup("test.fuzz").Value.String() != ""; code == 0 && !fuzzing {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func child(url string) int {
	ctx := context.Background()
	l, err := Open(ctx, url, Options{Log: hclog.NewNullLogger()})
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	id, err := l.Begin(ctx, Entry{ProductID: "p1", UserID: "u1", Action: ActionProvision, Actor: "acme"})
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println(id)
	_, _ = io.Copy(io.Discard, os.Stdin) // open until the parent has ended
	return 0
}

// startChild starts another process with the database, and returns the id of the row that
// it began; kill ends it without a clean-up.
func startChild(t *testing.T, url string) (id int64, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childURL+"="+url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			_ = in.Close()
		}
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the other process printed nothing: %v", err)
	}
	if id, err = strconv.ParseInt(strings.TrimSpace(line), 10, 64); err != nil {
		t.Fatalf("the other process printed %q", line)
	}
	return id, kill
}

// each runs a test with both kinds of database, each time an empty one.
func each(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, sqliteURL(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, emptyDatabase(t, postgres(t))) })
}

func sqliteURL(tb testing.TB) string { return "sqlite://" + filepath.Join(tb.TempDir(), "audit.db") }

// open opens a log for the duration of a test.
func open(tb testing.TB, url string) *Log {
	tb.Helper()
	l, err := Open(context.Background(), url, Options{RetentionDays: 90, Log: hclog.NewNullLogger()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	return l
}

// await polls until check returns nil.
func await(ctx context.Context, check func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := await(ctx, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// list reads all rows of a query as one page.
func list(tb testing.TB, l *Log, q Query) []Entry {
	tb.Helper()
	q.Limit = maxLimit
	page, err := l.Entries(context.Background(), q)
	must(tb, err)
	if page.NextCursor != "" {
		tb.Fatal("more rows than one page")
	}
	return page.Entries
}
