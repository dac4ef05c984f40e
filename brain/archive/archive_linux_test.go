package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/tree"
	"github.com/septemberai/orch/brain/tree/treetest"
)

func newIdentity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newKey(t testing.TB, id *age.X25519Identity) Key {
	t.Helper()
	key, err := NewKey(id.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustPack(t *testing.T, dir string, key Key) ([]byte, Packed) {
	t.Helper()
	var b bytes.Buffer
	p, err := Pack(t.Context(), dir, key, &b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), p
}

// fillNoise adds a file that needs several chunks of age, even compressed.
func fillNoise(t *testing.T, dir string) {
	t.Helper()
	noise := make([]byte, 5*chunkSize+1)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	if err := os.WriteFile(filepath.Join(dir, "noise"), noise, 0o600); err != nil {
		t.Fatal(err)
	}
}

// restoreModes does what the owner of a restore does at its end.
func restoreModes(t *testing.T, dir string, u Unpacked) {
	t.Helper()
	for name, mode := range u.TopModes {
		if err := unix.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func wantKind(t *testing.T, err error, want brain.Kind) {
	t.Helper()
	if got := brain.KindOf(err); got != want {
		t.Errorf("the error is %v, of kind %q; want %q", err, got, want)
	}
}

// TempDir is t.TempDir, whose clean-up copes with directories without write permission.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "archive")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Remove(dir) })
	return dir
}

func TestRoundTrip(t *testing.T) {
	from, to := tempDir(t), tempDir(t)
	skipped := treetest.Fill(t, from)
	fillNoise(t, from)
	id := newIdentity(t)
	object, p := mustPack(t, from, newKey(t, id))
	if !slices.Equal(p.SkippedNames, skipped) || int(p.Skipped) != len(skipped) {
		t.Errorf("skipped %q (%d), want %q", p.SkippedNames, p.Skipped, skipped)
	}
	if want := int64(20 << 30); p.Bytes < want || p.TarBytes > 1<<20 {
		t.Errorf("%d bytes of files, %d of the archive, want more than %d and few", p.Bytes, p.TarBytes, want)
	}
	u, err := Unpack(t.Context(), bytes.NewReader(object), p.Content, id.String(), to)
	if err != nil {
		t.Fatal(err)
	}
	if u.Entries != p.Entries {
		t.Errorf("%d entries, want %d", u.Entries, p.Entries)
	}
	restoreModes(t, to, u)
	treetest.Equal(t, from, to)
	if used := treetest.Used(t, to); used > 4<<20 {
		t.Errorf("the restored files use %d bytes", used)
	}
}

// An interrupted upload goes on with the same bytes.
// What Pack accepts, Unpack accepts: at the limits, too.
func TestLimits(t *testing.T) {
	id := newIdentity(t)
	key := newKey(t, id)
	roundTrip := func(t *testing.T, from string) {
		t.Helper()
		var object bytes.Buffer
		packed, err := Pack(t.Context(), from, key, &object)
		if err != nil {
			t.Fatal(err)
		}
		to := tempDir(t)
		if _, err := Unpack(t.Context(), &object, packed.Content, id.String(), to); err != nil {
			t.Fatal(err)
		}
		treetest.Equal(t, from, to)
	}
	t.Run("Depth", func(t *testing.T) {
		from := tempDir(t)
		deepest := from + strings.Repeat("/d", tree.MaxDepth)
		if err := os.MkdirAll(deepest, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{deepest + "/file", from + "/next"} {
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		roundTrip(t, from)
		if err := os.Mkdir(deepest+"/d", 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := Pack(t.Context(), from, key, io.Discard)
		wantKind(t, err, brain.Unreadable)
		entries := []entry{{kind: typeDir, name: ".", mode: 0o755}}
		for n := range tree.MaxDepth + 1 {
			entries = append(entries, entry{kind: typeDir, name: "d" + strings.Repeat("/d", n), mode: 0o755})
		}
		object, content := sealTar(t, craft(t, entries...), key)
		_, err = Unpack(t.Context(), bytes.NewReader(object), content, id.String(), tempDir(t))
		wantKind(t, err, brain.Corrupt)
	})
	t.Run("Size", func(t *testing.T) {
		from := tempDir(t)
		path := filepath.Join(from, "hole")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, maxSize+1); err != nil {
			t.Skipf("no file as large as that here: %v", err)
		}
		_, err := Pack(t.Context(), from, key, io.Discard)
		wantKind(t, err, brain.Unreadable)
		if err := os.Truncate(path, maxSize); err != nil {
			t.Fatal(err)
		}
		roundTrip(t, from)
	})
}

func TestSameKeySameBytes(t *testing.T) {
	from := tempDir(t)
	treetest.Fill(t, from)
	noise := make([]byte, 10<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise[:5<<20])
	if err := os.WriteFile(filepath.Join(from, "noise"), noise, 0o600); err != nil {
		t.Fatal(err)
	}
	key := newKey(t, newIdentity(t))
	first, _ := mustPack(t, from, key)
	for range 3 {
		if again, _ := mustPack(t, from, key); !bytes.Equal(first, again) {
			t.Fatal("the archives differ")
		}
	}
	if other, _ := mustPack(t, from, newKey(t, newIdentity(t))); bytes.Equal(first, other) {
		t.Error("another key makes the same archive")
	}
}

// The documented way to read a snapshot without orch.
func TestStockTools(t *testing.T) {
	for program, of := range map[string]string{"age": "age", "zstd": "zstd", "tar": "tar"} {
		need(t, program, of)
	}
	from, to, dir := tempDir(t), tempDir(t), tempDir(t)
	treetest.Fill(t, from)
	fillNoise(t, from)
	id := newIdentity(t)
	object, _ := mustPack(t, from, newKey(t, id))
	err := errors.Join(os.WriteFile(dir+"/key.txt", []byte(id.String()+"\n"), 0o600), os.WriteFile(dir+"/brain.tar.zst.age", object, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("bash", "-ec", `set -o pipefail
age -d -i "$0/key.txt" "$0/brain.tar.zst.age" | zstd -d | tar -x -p --xattrs -C "$1"`, dir, to)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	treetest.Equal(t, from, to)
	if used := treetest.Used(t, to); used > 4<<20 {
		t.Errorf("the restored files use %d bytes", used)
	}
}

func need(t *testing.T, program, packages string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("no %s here: apt-get install -y %s", program, packages)
	}
	t.Skipf("no %s here: apt-get install -y %s", program, packages)
}

// A truncated or altered object, another key, other sums: always the same kind of error.
func TestCorrupt(t *testing.T) {
	from := tempDir(t)
	treetest.Fill(t, from)
	if err := os.WriteFile(from+"/text", bytes.Repeat([]byte("0123456789abcdef"), 20000), 0o600); err != nil {
		t.Fatal(err)
	}
	id := newIdentity(t)
	object, p := mustPack(t, from, newKey(t, id))
	try := func(object []byte, want brain.Content, identity string) error {
		to := tempDir(t)
		_, err := Unpack(t.Context(), bytes.NewReader(object), want, identity, to)
		return err
	}
	if err := try(object, p.Content, id.String()); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 100, len(object) / 2, len(object) - 1} {
		wantKind(t, try(object[:n], p.Content, id.String()), brain.Corrupt)
	}
	for at := 0; at < len(object); at += 1 + len(object)/40 {
		altered := bytes.Clone(object)
		altered[at] ^= 4
		wantKind(t, try(altered, p.Content, id.String()), brain.Corrupt)
	}
	wantKind(t, try(append(bytes.Clone(object), 0), p.Content, id.String()), brain.Corrupt)
	wantKind(t, try(object, p.Content, newIdentity(t).String()), brain.Corrupt)
	for _, change := range []func(*brain.Content){
		func(c *brain.Content) { c.SHA256 = strings.Repeat("0", 64) },
		func(c *brain.Content) { c.TarSHA256 = strings.Repeat("0", 64) },
		func(c *brain.Content) { c.StoredBytes++ },
		func(c *brain.Content) { c.TarBytes-- },
	} {
		other := p.Content
		change(&other)
		wantKind(t, try(object, other, id.String()), brain.Corrupt)
	}
}

// An error of the source, of the target or of the caller is not taken for a damage.
func TestOtherErrors(t *testing.T) {
	from := tempDir(t)
	treetest.Fill(t, from)
	id := newIdentity(t)
	key := newKey(t, id)
	object, p := mustPack(t, from, key)
	lost := brain.Errorf(brain.Away, "lost")
	for _, n := range []int64{0, 10, int64(len(object) / 2)} {
		r := io.MultiReader(io.LimitReader(bytes.NewReader(object), n), failing{lost})
		_, err := Unpack(t.Context(), r, p.Content, id.String(), tempDir(t))
		wantKind(t, err, brain.Away)
	}
	_, err := Pack(t.Context(), from, key, failing{lost})
	wantKind(t, err, brain.Away)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Pack(ctx, from, key, io.Discard)
	wantKind(t, err, brain.Interrupted)
	_, err = Unpack(ctx, bytes.NewReader(object), p.Content, id.String(), tempDir(t))
	wantKind(t, err, brain.Interrupted)
	_, err = Pack(t.Context(), from+"/nothing", key, io.Discard)
	wantKind(t, err, brain.Unreadable)
	_, err = NewKey("age1nonsense")
	wantKind(t, err, brain.BadOrder)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }

// What Pack and Unpack need does not depend on the size of a brain.
func TestMemory(t *testing.T) {
	from, to := tempDir(t), tempDir(t)
	f, err := os.Create(from + "/large")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk, random := make([]byte, 1<<20), rand.NewChaCha8([32]byte{})
	for range 128 {
		_, _ = random.Read(chunk)
		if _, err := f.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	id := newIdentity(t)
	object, err := os.Create(to + "/object")
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	peak := watchMemory(t)
	p, err := Pack(t.Context(), from, newKey(t, id), object)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(to+"/out", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), io.NewSectionReader(object, 0, p.StoredBytes), p.Content, id.String(), to+"/out"); err != nil {
		t.Fatal(err)
	}
	if got := peak(); got > 64<<20 {
		t.Errorf("%d MiB of memory were used at the same time", got>>20)
	} else {
		t.Logf("%d MiB at most", got>>20)
	}
}

// watchMemory reads the use of the heap until the returned function is called, which
// returns the highest use beyond that at the start.
func watchMemory(t *testing.T) func() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, peak := m.HeapInuse, uint64(0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		}
	}()
	return func() uint64 { close(stop); <-done; return peak - min(peak, before) }
}

// Any tree comes back as it was.
func TestRoundTripOfAnyTree(t *testing.T) {
	id := newIdentity(t)
	key := newKey(t, id)
	rapid.Check(t, func(r *rapid.T) {
		from, to := tempDir(t), tempDir(t)
		dirs, files := []string{""}, []string{}
		name := rapid.Custom(func(r *rapid.T) string {
			b := rapid.SliceOfN(rapid.ByteRange(1, 255), 1, 40).Draw(r, "bytes")
			return string(bytes.ReplaceAll(b, []byte("/"), []byte("_"))) // UTF-8 or not
		})
		for range rapid.IntRange(0, 12).Draw(r, "entries") {
			path := filepath.Join(from, rapid.SampledFrom(dirs).Draw(r, "in"), string(name.Draw(r, "name")))
			rel, _ := filepath.Rel(from, path)
			if _, err := os.Lstat(path); err == nil || rel == "." || strings.HasPrefix(rel, "..") {
				continue
			}
			var err error
			switch rapid.IntRange(0, 4).Draw(r, "kind") {
			case 0:
				if err = os.Mkdir(path, os.FileMode(rapid.Uint32Range(0, 0o777).Draw(r, "mode"))); err == nil {
					dirs = append(dirs, rel)
				}
			case 1:
				err = os.Symlink(string(name.Draw(r, "target")), path)
			case 2:
				if len(files) > 0 {
					err = os.Link(filepath.Join(from, rapid.SampledFrom(files).Draw(r, "file")), path)
				}
			case 3:
				err = os.WriteFile(path, rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(r, "data"), os.FileMode(rapid.Uint32Range(0, 0o777).Draw(r, "mode")))
				files = append(files, rel)
			case 4:
				err = os.WriteFile(path, nil, 0o600)
				files = append(files, rel)
				if err == nil {
					err = os.Truncate(path, rapid.Int64Range(0, 1<<33).Draw(r, "hole"))
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if os.Getuid() != 0 {
			return // modes keep others from reading
		}
		object, p := mustPack(t, from, key)
		u, err := Unpack(t.Context(), bytes.NewReader(object), p.Content, id.String(), to)
		if err != nil {
			t.Fatal(err)
		}
		restoreModes(t, to, u)
		treetest.Equal(t, from, to)
	})
}
