package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/testpg"
)

// TestSQLiteReplaced removes the file while it is in use: no change is made whose row is
// not in the file of that name, the log reports it once, and works again when the file is
// back.
func TestSQLiteReplaced(t *testing.T) {
	for _, suffix := range []string{"", "-wal"} {
		t.Run("audit.db"+suffix, func(t *testing.T) {
			url := sqliteURL(t)
			var said bytes.Buffer
			l, err := Open(t.Context(), url, Options{Log: hclog.New(&hclog.LoggerOptions{Output: &said})})
			must(t, err)
			defer func() { must(t, l.Close()) }()
			id, err := l.Begin(t.Context(), Entry{})
			must(t, err)
			path := strings.TrimPrefix(url, "sqlite://") + suffix
			refused := func() {
				t.Helper()
				_, err := l.Begin(t.Context(), Entry{Action: ActionDestroy})
				wantErr(t, err, ErrUnavailable)
				wantErr(t, l.Complete(t.Context(), id, Completion{}), ErrUnavailable)
				wantErr(t, l.Ping(t.Context()), ErrUnavailable)
			}
			must(t, os.Rename(path, path+".old"))
			refused()
			must(t, os.WriteFile(path, nil, 0o600))
			refused()
			if n := strings.Count(said.String(), "[ERROR]"); n != 1 || !strings.Contains(said.String(), path) {
				t.Errorf("it was logged %d times:\n%s", n, said.String())
			}
			must(t, os.Rename(path+".old", path))
			must(t, l.Complete(t.Context(), id, Completion{}))
			_, err = l.Begin(t.Context(), Entry{})
			must(t, err)
			must(t, l.Ping(t.Context()))
		})
	}
}

// smallDisk mounts a file system of some MiB.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	dir, err := os.MkdirTemp("", "orch-disk-") // a directory that PostgreSQL's user can access
	must(t, err)
	t.Cleanup(func() { must(t, os.Remove(dir)) })
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", mib)))
	t.Cleanup(func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

// fill uses up the space of a disk, as an engine may do.
func fill(t *testing.T, dir string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "of-an-engine")
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer func() { _ = f.Close() }()
	for size := 64 << 10; size > 0; {
		if _, err = f.Write(make([]byte, size)); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			size /= 2
		}
	}
	return file
}

// TestFullDisk fills the disk of the SQLite file, and continues to take space that becomes
// free: health reports that no change can be audited, engines can be destroyed, and
// everything works again when there is space.
func TestFullDisk(t *testing.T) {
	dir := smallDisk(t, 24)
	address := "sqlite://" + dir + "/audit.db"
	l := open(t, address)
	must(t, begun(t.Context(), l, 20))
	must(t, l.Ping(t.Context()))
	const destroys = 25
	for i := range destroys {
		id, err := l.Begin(t.Context(), Entry{ProductID: "p", UserID: fmt.Sprint(i), EngineID: fmt.Sprint(i), Action: ActionProvision})
		must(t, err)
		must(t, l.Complete(t.Context(), id, Completion{}))
	}
	engine := fill(t, dir)
	greedy, enough := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer enough()
	work.Go(func() {
		f, err := os.OpenFile(engine, os.O_APPEND|os.O_WRONLY, 0)
		for err == nil && greedy.Err() == nil {
			_, _ = f.Write(make([]byte, 16<<10))
		}
		_ = f.Close()
	})

	eventually(t, "the disk is full", func() error {
		if _, err := l.Begin(t.Context(), Entry{Action: ActionProvision}); err == nil {
			return errors.New("a provision was begun")
		}
		return nil
	})
	destroy := func(l *Log, times int) {
		t.Helper()
		for i := range times {
			id, err := l.Begin(t.Context(), Entry{ProductID: "p", UserID: fmt.Sprint(i), EngineID: fmt.Sprint(i), Action: ActionDestroy})
			if err != nil {
				t.Fatalf("destroy %d: %v", i, err)
			}
			must(t, l.Complete(t.Context(), id, Completion{}))
			wantErr(t, l.Ping(t.Context()), ErrUnavailable)
			_, err = l.Begin(t.Context(), Entry{Action: ActionProvision})
			wantErr(t, err, ErrUnavailable)
		}
	}
	destroy(l, destroys)
	enough()
	work.Wait()

	must(t, os.Remove(engine))
	_, err := l.Begin(t.Context(), Entry{Action: ActionProvision})
	must(t, err)
	must(t, l.Ping(t.Context()))
	if info, err := os.Stat(filepath.Join(dir, "audit.db.reserve")); err != nil || info.Size() != reserveBytes {
		t.Errorf("the reserve is not back: %v", err)
	}
	if n, err := l.Numbers(t.Context(), "p"); err != nil || n.TotalDestroys != destroys {
		t.Errorf("%d destroys are counted, %v", n.TotalDestroys, err)
	}
}

// TestStartOnFullDisk: the reserve also helps a service that starts on a full disk.
func TestStartOnFullDisk(t *testing.T) {
	dir := smallDisk(t, 24)
	address := "sqlite://" + dir + "/audit.db"
	l, err := Open(t.Context(), address, Options{Log: hclog.NewNullLogger()})
	must(t, err)
	must(t, begun(t.Context(), l, 20))
	must(t, l.Close())
	fill(t, dir)
	l = open(t, address)
	id, err := l.Begin(t.Context(), Entry{Action: ActionDestroy})
	must(t, err)
	must(t, l.Complete(t.Context(), id, Completion{}))
}

// TestHealthOfFullServer fills PostgreSQL's disk: health reports it as long as changes are
// refused, and however often it is read, it writes rarely.
func TestHealthOfFullServer(t *testing.T) {
	testpg.Need(t)
	dir := smallDisk(t, 128)
	t.Setenv("TMPDIR", dir)
	s := ownPostgres(t)
	l := open(t, emptyDatabase(t, s))
	must(t, begun(t.Context(), l, 20))
	must(t, l.Ping(t.Context()))
	file := fill(t, dir)
	eventually(t, "changes are refused", func() error {
		for range 50 {
			if _, err := l.Begin(t.Context(), Entry{Action: ActionProvision}); err != nil {
				return nil
			}
		}
		return errors.New("they are not")
	})
	for range 200 {
		wantErr(t, l.Ping(t.Context()), ErrUnavailable)
	}
	must(t, os.Remove(file))
	eventually(t, "health is well again", func() error { return l.Ping(t.Context()) })
	must(t, begun(t.Context(), l, 20))
}

// TestProbes counts what health writes.
func TestProbes(t *testing.T) {
	l := open(t, sqliteURL(t))
	ids := func() (id int64) {
		t.Helper()
		must(t, l.db.reader.QueryRow(`SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence`).Scan(&id))
		return id
	}
	before := ids()
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for range 50 {
				if err := l.Ping(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if n := ids() - before; n < 1 || n > 5 {
		t.Errorf("400 questions wrote %d rows", n)
	}
	if rows := list(t, l, Query{}); len(rows) > 0 {
		t.Errorf("it left rows: %+v", rows)
	}
}
