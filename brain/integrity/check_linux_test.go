package integrity

import (
	"context"
	"database/sql"
	"encoding/binary"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(FileEnv); path != "" {
		if CheckFile(context.Background(), path, os.Stdout) != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// database makes a database with a table and an index, and returns its path.
func database(t *testing.T, dir, name string, more ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, one := range append([]string{
		"CREATE TABLE memories (id INTEGER PRIMARY KEY, input TEXT NOT NULL)", "CREATE INDEX by_input ON memories (input)",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 2000) INSERT INTO memories SELECT i, 'remembered ' || i FROM n",
	}, more...) {
		if _, err := db.ExecContext(t.Context(), one); err != nil {
			t.Fatal(one, err)
		}
	}
	return path
}

// damage overwrites a page in the middle of a file.
func damage(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(text[8*4096:9*4096], strings.Repeat("damaged ", 512))
	write(t, path, text)
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func found(t *testing.T, dir string) Found {
	t.Helper()
	f, err := Check(t.Context(), dir, "/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".orch*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	return f
}

// TestCheck: every database is found, whatever its name is, and the damaged ones are told
// from the others.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub", "a?mode=memory&x=#%zz\n'")
	if err := os.MkdirAll(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	database(t, dir, "plain.db")
	database(t, sub, "file:odd?\xff.sqlite")
	ro := database(t, sub, "read-only")
	if err := os.Chmod(ro, 0o400); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "notes"), []byte("SQLite format 4\x00"))
	write(t, filepath.Join(dir, "empty"), nil)
	if err := os.Link(filepath.Join(dir, "plain.db"), filepath.Join(dir, "same.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link.db")); err != nil {
		t.Fatal(err)
	}
	if got := found(t, dir); got != (Found{Databases: 3}) {
		t.Errorf("%+v", got)
	}
	damage(t, database(t, sub, "torn"))
	write(t, filepath.Join(dir, "cut.db"), append([]byte("SQLite format 3\x00"), 1, 2, 3))
	got := found(t, dir)
	if got.Databases != 5 || got.Unchecked != 0 || got.Damaged != 2 || !strings.Contains(got.First, "cut.db") {
		t.Errorf("%+v", got)
	}
}

// TestUnfinished: what a process had written to a log when it was killed belongs to the
// database.
func TestUnfinished(t *testing.T) {
	for _, mode := range []string{"WAL", "DELETE"} {
		t.Run(mode, func(t *testing.T) {
			from, dir := t.TempDir(), t.TempDir()
			path := database(t, from, "u.db", "PRAGMA journal_mode="+mode)
			db, err := sql.Open("sqlite", path+"?_pragma=cache_size(10)&_pragma=cache_spill(10)")
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			if _, err := tx.ExecContext(t.Context(), "UPDATE memories SET input = 'x' || input || hex(zeroblob(200))"); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
				t.Fatal(err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) < 2 {
				t.Fatal("there is no log beside the database")
			}
			if got := found(t, dir); got != (Found{Databases: 1}) {
				t.Errorf("%+v", got)
			}
			if mode == "DELETE" { // without its log it is half of a transaction
				if err := os.Remove(filepath.Join(dir, "u.db-journal")); err != nil {
					t.Fatal(err)
				}
				if err := os.CopyFS(filepath.Join(dir, "again"), os.DirFS(from)); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(filepath.Join(dir, "again", "u.db-journal")); err != nil {
					t.Fatal(err)
				}
				if got := found(t, dir); got.Damaged != 1 {
					t.Errorf("without its log: %+v", got)
				}
			}
		})
	}
}

// TestUnknownExtension: a table that needs an extension is no damage, and does not hide one.
func TestUnknownExtension(t *testing.T) {
	dir := t.TempDir()
	schema := []string{
		"PRAGMA writable_schema=ON",
		"INSERT INTO sqlite_schema VALUES ('table', 'vectors', 'vectors', 0, 'CREATE VIRTUAL TABLE vectors USING vec0(embedding float[4])')",
	}
	path := database(t, dir, "vectors.db", schema...)
	got := found(t, dir)
	if got.Damaged != 0 || got.Databases+got.Unchecked != 1 {
		t.Errorf("%+v", got)
	}
	damage(t, path)
	if got := found(t, dir); got.Damaged != 1 {
		t.Errorf("a damaged one: %+v", got)
	}
}

// TestHostile: what lies beside a database cannot lead the check to other files.
func TestHostile(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	victim := filepath.Join(outside, "victim")
	content := []byte(filepath.Join(outside, "child") + "\x00")
	write(t, victim, content)
	database(t, dir, "a.db")
	if err := os.Symlink(victim, filepath.Join(dir, "a.db-journal")); err != nil {
		t.Fatal(err)
	}
	path := database(t, dir, "b.db")
	// A hot journal of no page, which names a super-journal.
	var sum uint32
	for _, c := range []byte(victim) {
		sum += uint32(int8(c)) //nolint:gosec // as SQLite does
	}
	journal := append([]byte{0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7}, make([]byte, 504)...)
	binary.BigEndian.PutUint32(journal[16:], 16)
	binary.BigEndian.PutUint32(journal[20:], 512)
	binary.BigEndian.PutUint32(journal[24:], 4096)
	journal = append(journal, 0, 0, 0, 0)
	journal = append(journal, victim...)
	journal = binary.BigEndian.AppendUint32(journal, uint32(len(victim))) //nolint:gosec // short
	journal = binary.BigEndian.AppendUint32(journal, sum)
	journal = append(journal, journalEnd...)
	write(t, path+"-journal", journal)
	if got := found(t, dir); got != (Found{Unchecked: 2}) {
		t.Errorf("%+v", got)
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != string(content) {
		t.Errorf("the file outside was touched: %q, %v", text, err)
	}
}

// TestCrash: a process that ends without an answer says nothing about its database.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	database(t, dir, "a.db")
	got, err := Check(t.Context(), dir, "/bin/false")
	if err != nil || got != (Found{Unchecked: 1}) {
		t.Errorf("%+v, %v", got, err)
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	if _, err := Check(ctx, dir, "/proc/self/exe"); err == nil {
		t.Error("the check went on after the end of its context")
	}
}
