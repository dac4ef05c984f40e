package worker_test

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
)

// TestDrill: a drill checks the databases of what it restored, without privileges, and
// repeats that when it is started again.
func TestDrill(t *testing.T) {
	w := &world{t: t, base: memory(), of: store.Snapshot{EngineID: "engine1", SnapshotID: "snap1"}}
	bucket := t.TempDir()
	w.use("file://" + bucket)
	path := filepath.Join(w.brain, "deep", "er", "brain.db")
	db, err := sql.Open("sqlite", path+"?_pragma=journal_mode(WAL)")
	w.must(err)
	_, err = db.ExecContext(t.Context(), "CREATE TABLE m (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 5000) INSERT INTO m SELECT hex(randomblob(8)) FROM n")
	w.must(err)
	w.must(db.Close())
	if os.Getuid() == 0 {
		w.uid = 65532
		program, err := program()
		w.must(err)
		for _, dir := range []string{w.dir, bucket, filepath.Dir(bucket), filepath.Dir(program)} {
			w.must(os.Chmod(dir, 0o755))
		}
	}
	drill := func(id string, damage bool) brain.Report {
		t.Helper()
		if damage {
			text, err := os.ReadFile(path)
			w.must(err)
			copy(text[5*4096:6*4096], strings.Repeat("damaged ", 512))
			w.must(os.WriteFile(path, text, 0o600))
		}
		w.of.SnapshotID = id
		w.upload, err = w.store.Begin(t.Context(), w.of)
		w.must(err)
		w.must(os.MkdirAll(w.path("volume"), 0o755))
		if w.uid != 0 {
			if out, err := exec.Command("chown", "-hR", "65532:65532", w.dir, bucket).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		o := w.snapshotOrder()
		o.ID, o.Work = id, w.path("work-"+id)
		r := w.result(w.start(o).end())
		w.complete(r)
		if out, err := exec.Command("chmod", "-R", "a+rX", bucket).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		o = w.restoreOrder(r.Content)
		o.ID, o.Work, o.Restore.Drill = "drill-"+id, w.path("work-drill-"+id), true
		last := w.start(o).end()
		if again := w.start(o).end(); (again.Error == nil) != (last.Error == nil) {
			t.Errorf("again: %+v, %+v", again.Result, again.Error)
		}
		return last
	}
	if r := w.result(drill("sound", false)); r.Databases != 1 || r.Unchecked != 0 {
		t.Errorf("%+v", r)
	}
	w.must(os.RemoveAll(w.path("volume")))
	last := drill("damaged", true)
	w.wantError(last, brain.Damaged)
	if last.Error.Retry {
		t.Error("it says that a retry may help")
	}
}
