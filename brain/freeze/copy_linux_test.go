package freeze

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/tree"
	"github.com/septemberai/orch/brain/tree/treetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("ORCH_TEST_WRITE"); path != "" {
		if err := writeForever(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// xfs returns the directory of a new file system that shares blocks.
func xfs(t *testing.T, size string) string {
	t.Helper()
	for program, of := range map[string]string{"mkfs.xfs": "xfsprogs", "mount": "mount"} {
		path := "/usr/sbin/" + program
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if _, err := exec.LookPath(program); err != nil && os.Getenv("CI") == "true" {
			t.Fatalf("no %s here: apt-get install -y %s", program, of)
		} else if err != nil {
			t.Skipf("no %s here: apt-get install -y %s", program, of)
		}
	}
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	script := `export PATH=$PATH:/usr/sbin; truncate -s ` + size + ` "$0"; mkfs.xfs -q -m reflink=1 "$0"; mount -o loop "$0" "$1"`
	if out, err := exec.Command("sh", "-ec", script, disk, dir).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" && os.Getuid() == 0 {
			t.Fatalf("XFS cannot be mounted here: %v: %s", err, out)
		}
		t.Skipf("XFS cannot be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// onEach runs a test where blocks are shared, and where they are not.
func onEach(t *testing.T, test func(t *testing.T, dir string, shares bool)) {
	t.Run("Shared", func(t *testing.T) { test(t, xfs(t, "1G"), true) })
	t.Run("Plain", func(t *testing.T) {
		dir, err := os.MkdirTemp("", "freeze")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tree.Remove(dir) })
		test(t, dir, false)
	})
}

func TestCopy(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, shares bool) {
		from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
		if err := os.Mkdir(from, 0o755); err != nil {
			t.Fatal(err)
		}
		skipped := treetest.Fill(t, from)
		stats, err := Copy(t.Context(), from, to)
		if err != nil {
			t.Fatal(err)
		}
		treetest.Equal(t, from, to)
		if !slices.Equal(stats.SkippedNames, skipped) || int(stats.Skipped) != len(skipped) || (stats.Shared > 0) != shares || stats.Took <= 0 {
			t.Errorf("%+v; want %q skipped, and blocks shared: %t", stats, skipped, shares)
		}
		if stats.Changed != 0 {
			t.Errorf("%d entries are said to be changed", stats.Changed)
		}
		if used := treetest.Used(t, to); used > 4<<20 {
			t.Errorf("the copy of holes uses %d bytes", used)
		}
		if _, err := Copy(t.Context(), from, to); err == nil {
			t.Error("a directory that exists was copied over")
		}
		if err := tree.Remove(to); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Copy(ctx, from, to); brain.KindOf(err) != brain.Interrupted {
			t.Errorf("after an interruption: %v", err)
		}
	})
}

// A full disk is an error of its own kind.
func TestNoRoom(t *testing.T) {
	dir := xfs(t, "320M")
	from := t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "large"), make([]byte, 400<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), from, filepath.Join(dir, "to")); brain.KindOf(err) != brain.NoRoom {
		t.Errorf("got %v", err)
	}
}

// keptRows is how many rows the database has, so that checking it stays quick.
const keptRows = 300

// writeForever adds rows to a database, and prints each that is committed. The same
// transaction removes an old one.
func writeForever(path string) error {
	db, err := sql.Open("sqlite", path+"?_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)")
	if err != nil {
		return err
	}
	if _, err := db.Exec("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT); CREATE INDEX i ON t (text)"); err != nil {
		return err
	}
	for id := 1; ; id++ {
		err := func() error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			defer tx.Rollback() //nolint:errcheck // no-op after Commit
			if _, err := tx.Exec("INSERT INTO t VALUES (?, ?)", id, strings.Repeat(fmt.Sprint(id), 100)); err != nil {
				return err
			}
			if _, err := tx.Exec("DELETE FROM t WHERE id <= ?", id-keptRows); err != nil {
				return err
			}
			return tx.Commit()
		}()
		if err != nil {
			return err
		}
		if _, err := fmt.Println(id); err != nil {
			return err
		}
	}
}

// Each copy of a database whose writer is stopped is whole, and has all that was committed.
func TestSQLiteUnderWrites(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, _ bool) {
		from := filepath.Join(dir, "from")
		if err := os.Mkdir(from, 0o755); err != nil {
			t.Fatal(err)
		}
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "ORCH_TEST_WRITE="+filepath.Join(from, "brain.db"))
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		c.Stderr = os.Stderr
		out, err := c.StdoutPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		var acknowledged atomic.Int64
		read := make(chan struct{})
		go func() {
			defer close(read)
			for lines := bufio.NewScanner(out); lines.Scan(); {
				n, _ := strconv.ParseInt(lines.Text(), 10, 64)
				acknowledged.Store(n)
			}
		}()
		defer func() { _ = c.Process.Kill(); <-read; _ = c.Wait() }()
		var took []time.Duration
		last := int64(0)
		for n := range 100 {
			until(t, func() bool { return acknowledged.Load() > last }) // it writes between copies
			to := filepath.Join(dir, fmt.Sprint("to", n))
			stats, want := frozen(t, c.Process, &acknowledged, from, to)
			took = append(took, stats.Took)
			if stats.Changed != 0 {
				t.Errorf("%d entries are said to be changed by a process that is stopped", stats.Changed)
			}
			last = want
			check(t, filepath.Join(to, "brain.db"), want)
			if err := tree.Remove(to); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(took)
		t.Logf("%d writes; a copy took %s in the middle, %s at most", last, took[len(took)/2], took[len(took)-1])
	})
}

// frozen copies while the process is stopped, and returns what it had acknowledged before.
func frozen(t *testing.T, p *os.Process, acknowledged *atomic.Int64, from, to string) (Stats, int64) {
	t.Helper()
	want := acknowledged.Load()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Each thread stops when it leaves the kernel, so one may still complete a write.
	until(t, func() bool {
		all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
		for _, path := range all {
			text, _ := os.ReadFile(path)
			if _, state, _ := strings.Cut(string(text), ") "); !strings.HasPrefix(state, "T") {
				return false
			}
		}
		return len(all) > 0
	})
	stats, err := Copy(t.Context(), from, to)
	if resumed := p.Signal(syscall.SIGCONT); err != nil || resumed != nil {
		t.Fatal(err, resumed)
	}
	return stats, want
}

func check(t *testing.T, path string, want int64) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var verdict string
	var rows, lowest, highest int64
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&verdict); err != nil || verdict != "ok" {
		t.Fatalf("integrity: %q, %v", verdict, err)
	}
	if err := db.QueryRow("SELECT count(*), min(id), max(id) FROM t").Scan(&rows, &lowest, &highest); err != nil {
		t.Fatal(err)
	}
	if rows != highest-lowest+1 || rows != min(highest, keptRows) || highest < want {
		t.Fatalf("%d rows from %d to %d, want the last %d, up to %d", rows, lowest, highest, keptRows, want)
	}
}

func until(t *testing.T, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}
