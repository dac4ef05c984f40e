package worker_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/brain/store/storetest"
	"github.com/septemberai/orch/brain/transfer"
	"github.com/septemberai/orch/brain/tree"
	"github.com/septemberai/orch/brain/tree/treetest"
)

var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "orch-brain")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "orch-brain")
	c := exec.Command("go", "build", "-o", path, "../../cmd/orch-brain")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

const partBytes = brain.MinPart

// world is a store with a proxy before it, a brain, and an upload that a service has begun.
type world struct {
	t        *testing.T
	store    store.Store
	proxy    *storetest.Proxy
	base     string // where dir is; empty: where temporary files are
	dir      string // for everything on the node
	brain    string
	identity *age.X25519Identity
	of       store.Snapshot
	upload   string
	uid      uint32 // of the worker
	skipped  int    // entries of the brain that cannot be in a snapshot
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldIn(t, "")
}

func newWorldIn(t *testing.T, base string) *world {
	t.Helper()
	g := storetest.Start(t)
	w := &world{t: t, base: base, proxy: storetest.StartProxy(t, g.Addr), of: store.Snapshot{EngineID: "engine1", SnapshotID: "snap1"}}
	w.use(g.StoreURL(w.proxy.Addr))
	return w
}

func (w *world) use(url string) {
	var err error
	w.store, err = store.Open(url, storetest.Credentials)
	w.must(err)
	w.dir, err = os.MkdirTemp(w.base, "worker")
	w.must(err)
	w.t.Cleanup(func() { _ = tree.Remove(w.dir) })
	w.brain = filepath.Join(w.dir, "brain")
	w.must(os.Mkdir(w.brain, 0o755))
	w.skipped = len(treetest.Fill(w.t, w.brain))
	noise := make([]byte, 3*partBytes+12345) // it does not become smaller
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	w.must(os.WriteFile(filepath.Join(w.brain, "noise"), noise, 0o600))
	w.identity, err = age.GenerateX25519Identity()
	w.must(err)
	w.upload, err = w.store.Begin(w.t.Context(), w.of)
	w.must(err)
}

// memory returns a directory in memory. A worker syncs the whole file system of its
// directories, and a test that starts many workers would stall everything else on the disk.
func memory() string {
	var s unix.Statfs_t
	if unix.Statfs("/dev/shm", &s) == nil && s.Type == unix.TMPFS_MAGIC {
		return "/dev/shm"
	}
	return ""
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) snapshotOrder() brain.Order {
	w.t.Helper()
	parts, err := w.store.PartURLs(w.t.Context(), w.of, w.upload, 10, time.Hour)
	w.must(err)
	return brain.Order{
		ID: "order1", Work: w.path("work"), GiveUpS: 120, StallS: 20,
		Snapshot: &brain.SnapshotOrder{Brain: w.brain, Recipient: w.identity.Recipient().String(), Parts: parts, PartBytes: partBytes},
	}
}

func (w *world) restoreOrder(c brain.Content) brain.Order {
	w.t.Helper()
	url, err := w.store.ObjectURL(w.t.Context(), w.of, time.Hour)
	w.must(err)
	w.must(os.MkdirAll(w.path("volume"), 0o755))
	return brain.Order{
		ID: "order2", Work: w.path("work2"), GiveUpS: 120, StallS: 20,
		Restore: &brain.RestoreOrder{Volume: w.path("volume"), Identity: w.identity.String(), URL: url, Content: c},
	}
}

// process is a running worker.
type process struct {
	*exec.Cmd
	lines chan brain.Report
}

func (w *world) start(o brain.Order) *process {
	w.t.Helper()
	path, err := program()
	w.must(err)
	text, err := json.Marshal(o)
	w.must(err)
	w.must(os.WriteFile(w.path(o.ID), text, 0o600))
	p := &process{exec.Command(path), make(chan brain.Report, 100)}
	p.Env = []string{brain.OrderEnv + "=" + w.path(o.ID)}
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if w.uid != 0 {
		w.must(os.Chown(w.path(o.ID), int(w.uid), int(w.uid)))
		p.SysProcAttr.Credential = &syscall.Credential{Uid: w.uid, Gid: w.uid}
	}
	p.Stderr = os.Stderr
	out, err := p.StdoutPipe()
	w.must(err)
	w.must(p.Start())
	go func() {
		defer close(p.lines)
		for d := json.NewDecoder(out); ; {
			var r brain.Report
			if d.Decode(&r) != nil {
				return
			}
			p.lines <- r
		}
	}()
	w.t.Cleanup(func() {
		_ = p.Process.Kill() // does nothing after Wait
		if p.ProcessState == nil {
			p.end()
		}
	})
	return p
}

// longest is how long a worker may run; it is killed then.
const longest = 5 * time.Minute

// end waits for the last report; the zero report: the worker was killed before.
func (p *process) end() (last brain.Report) {
	deadline := time.AfterFunc(longest, func() { _ = p.Process.Kill() })
	defer deadline.Stop()
	for r := range p.lines {
		last = r
	}
	_ = p.Wait()
	if last.Phase != "done" {
		return brain.Report{}
	}
	return last
}

func (w *world) result(r brain.Report) *brain.Result {
	w.t.Helper()
	if r.Result == nil {
		w.t.Fatalf("no result: %+v %+v", r, r.Error)
	}
	return r.Result
}

func (w *world) wantError(r brain.Report, want brain.Kind) {
	w.t.Helper()
	if r.Error == nil || r.Error.Kind != want {
		w.t.Fatalf("the worker reports %+v with %+v, want %q", r, r.Error, want)
	}
	for _, secret := range []string{"Signature", w.identity.String(), storetest.Credentials.AccessKey} {
		if strings.Contains(r.Error.Message, secret) {
			w.t.Errorf("the report has a secret: %s", r.Error.Message)
		}
	}
}

// complete does what the service does after a snapshot.
func (w *world) complete(r *brain.Result) {
	w.t.Helper()
	w.must(w.store.Complete(w.t.Context(), w.of, w.upload, r.Parts, r.StoredBytes))
}

// wantRestored fails if the volume is not as the brain was.
func (w *world) wantRestored(want string) {
	w.t.Helper()
	treetest.Equal(w.t, want, w.path("volume"))
	if left, _ := filepath.Glob(w.path("volume/" + tree.Reserved + "*")); len(left) > 0 {
		w.t.Errorf("left in the volume: %v", left)
	}
}

func TestSnapshotAndRestore(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) *world{
		"S3": newWorld,
		"Dir": func(t *testing.T) *world {
			w := &world{t: t, of: store.Snapshot{EngineID: "engine1", SnapshotID: "snap1"}}
			w.use("file://" + t.TempDir())
			return w
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := make(t)
			r := w.result(w.start(w.snapshotOrder()).end())
			if r.Parts != 4 || int(r.Skipped) != w.skipped || len(r.SkippedNames) != w.skipped || r.CopyLeft {
				t.Errorf("%+v", r)
			}
			again := w.result(w.start(w.snapshotOrder()).end())
			if again.SHA256 != r.SHA256 {
				t.Error("the same order makes another snapshot")
			}
			for _, name := range []string{"copy", "copy.partial", "journal"} {
				if _, err := os.Lstat(w.path("work/" + name)); err == nil {
					t.Errorf("%s is left in the work directory", name)
				}
			}
			w.complete(r)
			restored := w.result(w.start(w.restoreOrder(r.Content)).end())
			if restored.Entries != r.Entries {
				t.Errorf("%d entries, want %d", restored.Entries, r.Entries)
			}
			w.wantRestored(w.brain)
			w.result(w.start(w.restoreOrder(r.Content)).end()) // its report was lost
			other := w.restoreOrder(r.Content)
			other.ID, other.Work = "order3", w.path("work3")
			w.wantError(w.start(other).end(), brain.NotEmpty)
			w.wantRestored(w.brain)
		})
	}
}

// A worker that is killed anywhere continues: no part that is noted as stored is sent again,
// and the snapshot is of the moment of the copy.
func TestKilledSnapshot(t *testing.T) {
	w := newWorldIn(t, memory())
	want := w.path("want")
	if out, err := exec.Command("cp", "-a", w.brain, want).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var mu sync.Mutex
	var p *process
	puts, kills := 0, 0
	stored := map[string]bool{} // the parts that were noted as stored when the worker started
	// The worker is killed before a part is sent, in the middle of it, and around its end. Each
	// second request is left alone, so that there is progress.
	w.proxy.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if part := r.URL.Query().Get("partNumber"); r.Method == http.MethodPut && stored[part] {
			t.Errorf("part %s is sent again", part)
		}
		if puts++; r.Method != http.MethodPut || puts%2 == 0 || kills == 6 {
			return false
		}
		kills++
		switch running := p.Process; kills % 3 {
		case 0:
			time.AfterFunc(rand.N(50*time.Millisecond), func() { _ = running.Kill() })
			return false
		case 1:
			_, _ = io.CopyN(io.Discard, r.Body, partBytes/2)
		}
		_ = p.Process.Kill()
		panic(http.ErrAbortHandler)
	})
	o := w.snapshotOrder()
	o.BytesPerSecond = 20 << 20
	var last brain.Report
	for n := 0; last.Phase == ""; n++ {
		if n == 1 {
			w.must(os.WriteFile(filepath.Join(w.brain, "later"), []byte("the engine runs on"), 0o600))
		}
		if n > 20 {
			t.Fatal("it does not end")
		}
		o.Snapshot.Parts = w.snapshotOrder().Snapshot.Parts // signed again
		mu.Lock()                                           // a request waits until p is set
		for _, number := range w.storedParts() {
			stored[number] = true
		}
		p = w.start(o)
		mu.Unlock()
		last = p.end()
	}
	r := w.result(last)
	w.complete(r)
	w.proxy.Hook(nil)
	w.result(w.start(w.restoreOrder(r.Content)).end())
	w.wantRestored(want)
	if len(stored) == 0 {
		t.Error("no part was stored before the last start")
	}
	t.Logf("killed %d times; stored before the last start: %v; requests: %q", kills, stored, w.proxy.Seen())
}

// storedParts returns the numbers of the parts that the journal notes as stored.
func (w *world) storedParts() (numbers []string) {
	text, _ := os.ReadFile(w.path("work/journal"))
	for line := range strings.Lines(string(text)) {
		var p transfer.Part
		if json.Unmarshal([]byte(line), &p) == nil && p.Stored {
			numbers = append(numbers, fmt.Sprint(p.Number))
		}
	}
	return numbers
}

// Parts that are stored are not sent again, and a lost connection, 503 and silence cost
// one part each.
func TestResumedUpload(t *testing.T) {
	w := newWorld(t)
	o := w.snapshotOrder()
	o.StallS = 3
	var mu sync.Mutex
	tries := map[string]int{}
	sent := func() map[string]int { mu.Lock(); defer mu.Unlock(); return maps.Clone(tries) }
	hang, ended := make(chan struct{}), make(chan struct{})
	var p *process
	w.proxy.Hook(func(answer http.ResponseWriter, r *http.Request) bool {
		part := r.URL.Query().Get("partNumber")
		mu.Lock()
		tries[part]++
		n := tries[part]
		mu.Unlock()
		switch {
		case part == "1" && n == 1:
			storetest.Status(answer, 503, "SlowDown")
			return true
		case part == "2" && n == 1:
			storetest.Lose(r, partBytes/2)
		case part == "2" && n == 2:
			<-hang // the client gives up
			return true
		case part == "3" && n == 1:
			mu.Lock()
			_ = p.Process.Signal(syscall.SIGTERM)
			mu.Unlock()
			<-ended // a lost connection could not be told from the interruption
			return true
		}
		return false
	})
	release := sync.OnceFunc(func() { close(ended) })
	t.Cleanup(func() { close(hang); release() })
	mu.Lock()
	p = w.start(o)
	mu.Unlock()
	first := p.end()
	release()
	w.wantError(first, brain.Interrupted)
	if !first.Error.Retry {
		t.Error("an interruption is final")
	}
	before := sent()
	if before["1"] < 2 || before["2"] < 3 || before["3"] < 1 || before["4"] > 0 {
		t.Errorf("how often each part was sent: %v", before)
	}
	r := w.result(w.start(o).end())
	w.complete(r)
	after := sent()
	if after["1"] != before["1"] || after["2"] != before["2"] || after["3"] <= before["3"] || after["4"] < 1 {
		t.Errorf("how often each part was sent: %v, and after the restart %v", before, after)
	}
}

// The worker has no privileges: neither on a node, nor in a container.
func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the other tests run without privileges here")
	}
	w := newWorld(t)
	w.uid = 65532
	_ = os.Chmod(w.dir, 0o755)
	path, err := program()
	w.must(err)
	w.must(os.Chmod(filepath.Dir(path), 0o755))
	w.must(os.Mkdir(w.path("volume"), 0o755))
	w.must(os.Mkdir(w.path("work"), 0o755))
	w.must(os.Mkdir(w.path("work2"), 0o755))
	if out, err := exec.Command("chown", "-hR", "65532:65532", w.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.must(os.Chmod(filepath.Join(w.brain, "deep/er/est/program"), 0o755|os.ModeSetuid))
	r := w.result(w.start(w.snapshotOrder()).end())
	w.complete(r)
	w.result(w.start(w.restoreOrder(r.Content)).end())
	w.wantRestored(w.brain)
	w.must(os.Mkdir(w.path("brain/secret"), 0o700)) // of root
	o := w.snapshotOrder()
	o.ID = "order7"
	w.wantError(w.start(o).end(), brain.Unreadable)
}

// What a store refuses is final; an upload that was aborted is not found, and leaves nothing.
func TestRefusedSnapshot(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		status int
		code   string
		want   brain.Kind
	}{{403, "AccessDenied", brain.Refused}, {403, "QuotaExceeded", brain.OverQuota}, {507, "InsufficientStorage", brain.OverQuota}} {
		w.proxy.Hook(func(answer http.ResponseWriter, _ *http.Request) bool {
			storetest.Status(answer, c.status, c.code)
			return true
		})
		w.wantError(w.start(w.snapshotOrder()).end(), c.want)
		// An order that is signed again continues.
		_, err := os.Stat(w.path("work/copy/copied.json"))
		if kept := err == nil; kept != (c.want == brain.Refused) {
			t.Errorf("after %s: the copy is kept: %t", c.want, kept)
		}
	}
	o := w.snapshotOrder()
	w.proxy.Hook(func(answer http.ResponseWriter, _ *http.Request) bool {
		storetest.Status(answer, 503, "SlowDown")
		return true
	})
	o.GiveUpS = 1
	w.wantError(w.start(o).end(), brain.Away)
	w.proxy.Hook(nil)
	o.Snapshot.Parts = o.Snapshot.Parts[:2]
	w.wantError(w.start(o).end(), brain.TooLarge)
	if n, err := w.store.Sweep(t.Context(), time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Errorf("%d half uploads were swept, %v", n, err)
	}
	w.wantError(w.start(w.snapshotOrder()).end(), brain.NotFound)
	if left, _ := filepath.Glob(w.path("work/copy*")); len(left) > 0 {
		t.Errorf("left on the node: %v", left)
	}
}

// A worker that listens copies when it is asked with the token, and answers after the copy.
func TestCopyWhenAsked(t *testing.T) {
	w := newWorld(t)
	o := w.snapshotOrder()
	o.Snapshot.Listen, o.Snapshot.Token = "127.0.0.1:0", "a-token-of-one-time"
	p := w.start(o)
	waiting := <-p.lines
	if waiting.Phase != "waiting" || waiting.Listen == "" {
		t.Fatalf("the first report is %+v", waiting)
	}
	ask := func(token string) (int, map[string]any) {
		r, err := http.NewRequest(http.MethodPost, "http://"+waiting.Listen+"/copy", nil)
		w.must(err)
		r.Header.Set("Authorization", "Bearer "+token)
		answer, err := http.DefaultClient.Do(r)
		w.must(err)
		defer answer.Body.Close()
		var body map[string]any
		_ = json.NewDecoder(answer.Body).Decode(&body)
		return answer.StatusCode, body
	}
	if code, _ := ask("another"); code != http.StatusUnauthorized {
		t.Errorf("another token: %d", code)
	}
	w.must(os.WriteFile(filepath.Join(w.brain, "before"), []byte("x"), 0o600))
	if code, body := ask(o.Snapshot.Token); code != http.StatusOK || body["copy_ms"] == nil {
		t.Errorf("%d %v", code, body)
	}
	w.must(os.WriteFile(filepath.Join(w.brain, "after"), []byte("x"), 0o600))
	r := w.result(p.end())
	w.complete(r)
	w.result(w.start(w.restoreOrder(r.Content)).end())
	w.must(os.Remove(filepath.Join(w.brain, "after")))
	w.wantRestored(w.brain)

	o.ID, o.Work, o.Snapshot.WaitS = "order9", w.path("work9"), 1
	w.wantError(w.start(o).end(), brain.Interrupted) // nobody asks
}

// A restore that is killed anywhere, and started again, is complete; before that, nothing in
// the volume looks like a brain.
func TestKilledRestore(t *testing.T) {
	w := newWorldIn(t, memory())
	r := w.result(w.start(w.snapshotOrder()).end())
	w.complete(r)
	began := time.Now()
	w.result(w.start(w.restoreOrder(r.Content)).end())
	whole := time.Since(began)
	for n := range 5 {
		w.must(tree.Remove(w.path("volume")))
		o := w.restoreOrder(r.Content)
		o.ID, o.Work = fmt.Sprintf("restore%d", n), w.path(fmt.Sprintf("work-restore%d", n))
		var last brain.Report
		kills := 0
		for last.Phase == "" {
			p := w.start(o)
			if kills < 3 {
				kills++
				time.AfterFunc(time.Duration(rand.Int64N(int64(whole))), func() { _ = p.Process.Kill() })
			}
			if last = p.end(); last.Phase == "" {
				w.wantNothingHalf()
			}
		}
		w.result(last)
		w.wantRestored(w.brain)
	}
}

// wantNothingHalf: entries are in the volume only while the verified directory is, or when
// all of them are.
func (w *world) wantNothingHalf() {
	w.t.Helper()
	all, err := os.ReadDir(w.path("volume"))
	w.must(err)
	reserved := slices.ContainsFunc(all, func(d os.DirEntry) bool { return d.Name() == tree.Reserved+".verified" })
	own := slices.DeleteFunc(all, func(d os.DirEntry) bool { return strings.HasPrefix(d.Name(), tree.Reserved) })
	if len(own) > 0 && !reserved {
		treetest.Equal(w.t, w.brain, w.path("volume"))
	}
}

// A truncated, altered or replaced object leaves an empty volume; a lost connection does not
// matter.
func TestCorruptRestore(t *testing.T) {
	w := newWorld(t)
	r := w.result(w.start(w.snapshotOrder()).end())
	w.complete(r)
	url := w.restoreOrder(r.Content).Restore.URL
	answer, err := http.Get(url)
	w.must(err)
	object, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	w.must(err)
	serve := func(object []byte, lose bool) {
		var lost atomic.Bool
		w.proxy.Hook(func(answer http.ResponseWriter, q *http.Request) bool {
			answer.Header().Set("ETag", `"e"`)
			if lose && lost.CompareAndSwap(false, true) {
				answer.Header().Set("Content-Length", fmt.Sprint(len(object)))
				_, _ = answer.Write(object[:len(object)/2])
				panic(http.ErrAbortHandler)
			}
			http.ServeContent(answer, q, "", time.Time{}, bytes.NewReader(object))
			return true
		})
	}
	altered := bytes.Clone(object)
	altered[len(altered)/2] ^= 1
	for name, object := range map[string][]byte{"Truncated": object[:len(object)-1], "Altered": altered, "Longer": append(bytes.Clone(object), 0)} {
		t.Run(name, func(t *testing.T) {
			serve(object, false)
			last := w.start(w.restoreOrder(r.Content)).end()
			w.wantError(last, brain.Corrupt)
			if last.Error.Retry {
				t.Error("it says that a retry may help")
			}
			if all, err := os.ReadDir(w.path("volume")); len(all) > 0 || err != nil {
				t.Errorf("in the volume: %v, %v", all, err)
			}
		})
	}
	w.proxy.Hook(func(answer http.ResponseWriter, _ *http.Request) bool {
		storetest.Status(answer, 404, "NoSuchKey")
		return true
	})
	w.wantError(w.start(w.restoreOrder(r.Content)).end(), brain.NotFound)
	serve(object, true)
	w.result(w.start(w.restoreOrder(r.Content)).end())
	w.wantRestored(w.brain)
}

// The id of an order is not enough to believe an earlier result.
func TestOrderOfAnotherVolume(t *testing.T) {
	w := newWorld(t)
	r := w.result(w.start(w.snapshotOrder()).end())
	w.complete(r)
	w.result(w.start(w.restoreOrder(r.Content)).end())
	w.must(tree.Remove(w.path("volume")))
	w.wantError(w.start(w.restoreOrder(r.Content)).end(), brain.BadOrder)
	var err error
	w.upload, err = w.store.Begin(t.Context(), w.of)
	w.must(err)
	w.wantError(w.start(w.snapshotOrder()).end(), brain.BadOrder)
}

// Two workers do not share a work directory or a volume, and a restore does not share its
// volume with an engine.
func TestBusy(t *testing.T) {
	w := newWorld(t)
	hold := func(path string) (release func()) {
		w.must(os.MkdirAll(path, 0o755))
		f, err := os.Open(path)
		w.must(err)
		w.must(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
		return func() { _ = f.Close() }
	}
	wantBusy := func(o brain.Order) {
		t.Helper()
		last := w.start(o).end()
		if w.wantError(last, brain.Busy); !last.Error.Retry {
			t.Error("it says that a retry does not help")
		}
	}
	defer hold(w.brain)() // by the engine
	release := hold(w.path("work"))
	wantBusy(w.snapshotOrder())
	release()
	r := w.result(w.start(w.snapshotOrder()).end())
	w.complete(r)
	release = hold(w.path("volume"))
	wantBusy(w.restoreOrder(r.Content))
	release()
	w.result(w.start(w.restoreOrder(r.Content)).end())
	w.wantRestored(w.brain)
}

// What an engine has put under the names of a restore neither stops a worker nor leads it
// out of the volume, and is not removed.
func TestPlantedNames(t *testing.T) {
	w := newWorld(t)
	r := w.result(w.start(w.snapshotOrder()).end())
	w.complete(r)
	volume, outside := w.path("volume"), w.path("outside")
	w.must(os.Mkdir(outside, 0o700))
	for name, plant := range map[string]func(){
		"Link": func() { w.must(os.Symlink(outside, filepath.Join(volume, tree.Reserved+".verified"))) },
		"FIFO": func() {
			w.must(os.Mkdir(filepath.Join(volume, tree.Reserved+".verified"), 0o700))
			w.must(unix.Mkfifo(filepath.Join(volume, tree.Reserved+".verified/receipt.json"), 0o600))
		},
		"Mode": func() {
			text := `{"order":"order2","modes":{"../outside":511}}`
			w.must(os.Mkdir(filepath.Join(volume, tree.Reserved+".verified"), 0o700))
			w.must(os.WriteFile(filepath.Join(volume, tree.Reserved+".verified/receipt.json"), []byte(text), 0o600))
		},
		"Unverified": func() {
			w.must(os.Mkdir(filepath.Join(volume, tree.Reserved+".unverified"), 0o700))
			w.must(os.WriteFile(filepath.Join(volume, "brain.sqlite"), nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			outer := w.t
			w.t = t
			defer func() { w.t = outer }()
			w.must(tree.Remove(volume))
			o := w.restoreOrder(r.Content)
			plant()
			before, err := os.ReadDir(volume)
			w.must(err)
			w.wantError(w.start(o).end(), brain.NotEmpty)
			after, err := os.ReadDir(volume)
			w.must(err)
			if len(before) != len(after) {
				t.Errorf("in the volume before: %v, after: %v", before, after)
			}
			if info, err := os.Stat(outside); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("outside of the volume: %v, %v", info.Mode(), err)
			}
		})
	}
}

func TestBadOrders(t *testing.T) {
	w := &world{t: t, dir: t.TempDir()}
	path, err := program()
	w.must(err)
	for _, text := range []string{"", "{}", "no JSON: secret", `{"id":"a","work":"/w","unknown":1}`, `{"id":"a","work":"/w","snapshot":{"brain":"/b"}}`} {
		w.must(os.WriteFile(w.path("order"), []byte(text), 0o600))
		c := exec.Command(path)
		c.Env = []string{brain.OrderEnv + "=" + w.path("order")}
		out, err := c.Output()
		var r brain.Report
		if err != nil || json.Unmarshal(out, &r) != nil || r.Error == nil || r.Error.Kind != brain.BadOrder || bytes.Contains(out, []byte("secret")) {
			t.Errorf("%q: %v, %s", text, err, out)
		}
	}
}
