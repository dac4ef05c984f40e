package worker

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
)

// What is removed loses its name before the first file in it is removed. Otherwise a worker
// that is killed meanwhile leaves half a copy under the name of a finished one.
func TestClearRenamesFirst(t *testing.T) {
	w := work(t.TempDir())
	if err := errors.Join(os.MkdirAll(w.path(copyDir+"/"+treeName), 0o700), writeJSON(w.path(copyDir+"/"+copiedName), copied{}, writeVolatile)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, w.path(copyDir), unix.IN_DELETE|unix.IN_MOVE_SELF); err != nil {
		t.Fatal(err)
	}
	if err := w.clear(copyDir); err != nil {
		t.Fatal(err)
	}
	// The first event (inotify(7)): watch descriptor, mask, and what does not matter here.
	var b [4096]byte
	if n, err := unix.Read(fd, b[:]); err != nil || n < 8 {
		t.Fatal(n, err)
	}
	if mask := uint32(b[4]) | uint32(b[5])<<8 | uint32(b[6])<<16 | uint32(b[7])<<24; mask&unix.IN_MOVE_SELF == 0 {
		t.Errorf("the first event is %#x, want the rename of the copy", mask)
	}
	if left, _ := filepath.Glob(w.path("*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// The copy and the journal of a snapshot are not on the disk, so after a crash of the machine
// they are worth nothing, even if they are there. The result of a restore is.
func TestAnotherBoot(t *testing.T) {
	snapshot := &brain.Order{ID: "order1", Snapshot: &brain.SnapshotOrder{}}
	for _, c := range []struct {
		order *brain.Order
		mark  string
		kept  bool
	}{
		{snapshot, "order1 " + bootID(), true},
		{snapshot, "order1 5a0d0a62-0000-4000-8000-000000000000", false},
		{snapshot, "order2 " + bootID(), false},
		{&brain.Order{ID: "order1", Restore: &brain.RestoreOrder{}}, "order1", true},
		{&brain.Order{ID: "order1", Restore: &brain.RestoreOrder{}}, "order2", false},
	} {
		w := work(t.TempDir())
		for name, text := range map[string]string{orderFile: c.mark, journalFile: "{}", resultFile: "{}"} {
			if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := w.claim(c.order); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{journalFile, resultFile} {
			if _, err := os.Stat(w.path(name)); (err == nil) != c.kept {
				t.Errorf("%s after %q: kept %t", name, c.mark, err == nil)
			}
		}
	}
}

// Whoever asks for the copy holds the engine frozen. If they are gone before the end, the
// copy may be torn: it is stopped, and is never a success.
func TestAskerGone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	lines, out := io.Pipe()
	r := &reporter{out: out}
	addr := make(chan string, 1)
	go func() {
		b := make([]byte, 4096)
		n, _ := lines.Read(b)
		_, rest, _ := strings.Cut(string(b[:n]), `"listen":"`)
		at, _, _ := strings.Cut(rest, `"`)
		addr <- at
	}()
	asker, gone := context.WithCancel(ctx)
	asked := make(chan error, 1)
	go func() {
		q, err := http.NewRequestWithContext(asker, http.MethodPost, "http://"+<-addr+"/copy", strings.NewReader("{}"))
		if err == nil {
			q.Header.Set("Authorization", "Bearer token")
			var response *http.Response
			if response, err = http.DefaultClient.Do(q); err == nil {
				_ = response.Body.Close()
			}
		}
		asked <- err
	}()
	o := &brain.SnapshotOrder{Listen: "127.0.0.1:0", Token: "token", WaitS: 300}
	_, err := whenAsked(ctx, o, r, func(ctx context.Context) (copied, error) {
		gone()
		<-ctx.Done()
		return copied{CopyMS: 1}, nil // as if the last file had been copied at that moment
	})
	if brain.KindOf(err) != brain.Interrupted {
		t.Errorf("got %v, want an interruption", err)
	}
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Errorf("the request ended with %v", err)
	}
	if ctx.Err() != nil {
		t.Error("only the deadline of the test ended the copy")
	}
}
