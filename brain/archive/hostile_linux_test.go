package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/tree"
)

// sealTar makes the object of a tar archive, whatever is in it.
func sealTar(t testing.TB, plain []byte, key Key) ([]byte, brain.Content) {
	t.Helper()
	var object bytes.Buffer
	seal, err := newSealer(key, &object)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(seal, zstd.WithWindowSize(window))
	if err == nil {
		_, err = z.Write(plain)
	}
	if err = errors.Join(err, z.Close(), seal.Close()); err != nil {
		t.Fatal(err)
	}
	sum := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
	return object.Bytes(), brain.Content{
		SHA256: sum(object.Bytes()), TarSHA256: sum(plain), StoredBytes: int64(object.Len()), TarBytes: int64(len(plain)),
	}
}

func craft(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tarWriter{to: &b}
	for _, e := range entries {
		if err := w.begin(&e); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(&w, strings.Repeat("x", int(w.left))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// An archive by somebody who has the recipient's public key and may write the store: it
// decrypts, and its sums are right.
func TestHostileArchives(t *testing.T) {
	top := entry{kind: typeDir, name: ".", mode: 0o755}
	file := func(name string) entry { return entry{kind: typeFile, name: name, mode: 0o644, size: 5} }
	dir := func(name string) entry { return entry{kind: typeDir, name: name, mode: 0o755} }
	link := func(name, to string) entry { return entry{kind: typeSymlink, name: name, link: to} }
	hard := func(name, to string) entry { return entry{kind: typeLink, name: name, link: to} }
	id := newIdentity(t)
	key := newKey(t, id)
	base := tempDir(t)
	outside := filepath.Join(base, "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, entries := range map[string][]entry{
		"Absolute":              {top, file(base + "/a")},
		"AbsoluteDir":           {top, dir(base + "/a")},
		"DotDot":                {top, file("../a")},
		"DotDotInside":          {top, dir("d"), file("d/../../a")},
		"DotDotDir":             {top, dir("..")},
		"Dot":                   {top, file("./a")},
		"EmptyPart":             {top, dir("d"), file("d//a")},
		"EmptyName":             {top, file("")},
		"TooLong":               {top, file(strings.Repeat("n", 256))},
		"SymlinkThenThrough":    {top, link("d", base), file("d/a")},
		"SymlinkThenDir":        {top, link("d", base), dir("d"), file("d/a")},
		"SymlinkThenFile":       {top, link("f", outside), file("f")},
		"SymlinkInsideThrough":  {top, dir("d"), link("s", "d"), file("s/a")},
		"DirThenSymlink":        {top, dir("d"), link("d", base), file("d/a")},
		"HardLinkAbsolute":      {top, hard("h", outside)},
		"HardLinkDotDot":        {top, hard("h", "../outside")},
		"HardLinkThroughLink":   {top, link("d", ".."), hard("h", "d/outside")},
		"HardLinkToLink":        {top, link("l", outside), hard("h", "l")},
		"HardLinkInsideLink":    {top, dir("d"), file("d/f"), link("l", "d"), hard("h", "l/f")},
		"HardLinkToDir":         {top, dir("d"), hard("h", "d")},
		"HardLinkToNothing":     {top, hard("h", "nothing")},
		"HardLinkToItself":      {top, hard("h", "h")},
		"FileTwice":             {top, file("a"), file("a")},
		"TopTwice":              {top, top},
		"NoTop":                 {file("a")},
		"Empty":                 {},
		"NoDir":                 {top, file("d/a")},
		"LeftDir":               {top, dir("d"), dir("e"), file("d/a")},
		"CharacterDevice":       {top, {kind: '3', name: "null", mode: 0o666}},
		"BlockDevice":           {top, {kind: '4', name: "disk", mode: 0o666}},
		"UnknownType":           {top, {kind: '7', name: "a"}},
		"Reserved":              {top, dir(tree.Reserved + ".verified")},
		"DirWithData":           {top, {kind: typeDir, name: "d", sparse: true, size: 1 << 20}},
		"LinkWithoutTarget":     {top, {kind: typeSymlink, name: "l"}},
		"FileWithTarget":        {top, {kind: typeFile, name: "l", link: "a"}},
		"SparseOverlap":         {top, {kind: typeFile, name: "s", sparse: true, size: 100, extents: []tree.Extent{{Offset: 0, Length: 60}, {Offset: 50, Length: 10}}}},
		"SparseOutside":         {top, {kind: typeFile, name: "s", sparse: true, size: 100, extents: []tree.Extent{{Offset: 90, Length: 60}}}},
		"SecurityAttribute":     {top, {kind: typeFile, name: "f", xattrs: []tree.Xattr{{Name: "security.capability", Value: "x"}}}},
		"NameWithZero":          {top, file("a\x00b")},
		"SymlinkTargetWithZero": {top, link("a", "b\x00c")},
	} {
		t.Run(name, func(t *testing.T) {
			to := filepath.Join(base, "to")
			if err := errors.Join(os.RemoveAll(to), os.Mkdir(to, 0o700)); err != nil {
				t.Fatal(err)
			}
			object, content := sealTar(t, craft(t, entries...), key)
			_, err := Unpack(t.Context(), bytes.NewReader(object), content, id.String(), to)
			wantKind(t, err, brain.Corrupt)
			if text, err := os.ReadFile(outside); err != nil || string(text) != "untouched" {
				t.Errorf("outside is %q, %v", text, err)
			}
			if all, err := os.ReadDir(base); len(all) != 2 || err != nil {
				t.Errorf("beside the target is %v, %v", all, err)
			}
		})
	}
	t.Run("OK", func(t *testing.T) {
		object, content := sealTar(t, craft(t, top, dir("d"), file("d/f"), dir("d/e"), link("d/e/l", "/"), dir("e"), hard("e/h", "d/f")), key)
		if _, err := Unpack(t.Context(), bytes.NewReader(object), content, id.String(), tempDir(t)); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("AfterTheEnd", func(t *testing.T) {
		plain := craft(t, top)
		for _, plain := range [][]byte{append(bytes.Clone(plain), 0), append(bytes.Clone(plain), plain...), plain[:len(plain)-1], plain[:len(plain)-512]} {
			object, content := sealTar(t, plain, key)
			_, err := Unpack(t.Context(), bytes.NewReader(object), content, id.String(), tempDir(t))
			wantKind(t, err, brain.Corrupt)
		}
	})
}

// FuzzReader: no archive makes the reader do anything but return entries whose names are
// inside, or an error of the kind Corrupt. What it accepts, the writer writes again.
func FuzzReader(f *testing.F) {
	top := entry{kind: typeDir, name: ".", mode: 0o755}
	f.Add(craft(f, top))
	f.Add(craft(f, top, entry{kind: typeFile, name: "a", size: 600, mode: 0o4755, seconds: -3, nanos: 5, xattrs: []tree.Xattr{{Name: "user.a", Value: "b\x00\n"}}}))
	f.Add(craft(f, top, entry{kind: typeFile, name: "s", size: 1 << 40, sparse: true, extents: []tree.Extent{{Offset: 4096, Length: 512}, {Offset: 1 << 30, Length: 7}}}))
	f.Add(craft(f, top, entry{kind: typeDir, name: "\xff"}, entry{kind: typeSymlink, name: "\xff/l", link: "/\n"}, entry{kind: typeLink, name: "\xff/h", link: "a"}, entry{kind: typeFIFO, name: "p"}))
	f.Fuzz(func(t *testing.T, text []byte) {
		r := tarReader{from: bytes.NewReader(text)}
		var again bytes.Buffer
		w := tarWriter{to: &again}
		for {
			e, err := r.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				wantKind(t, err, brain.Corrupt)
				return
			}
			if e.name != "." && !filepath.IsLocal(e.name) || e.kind == typeLink && !filepath.IsLocal(e.link) || e.size < 0 {
				t.Fatalf("accepted: %+v", e)
			}
			data, err := io.ReadAll(&r)
			if err != nil {
				wantKind(t, err, brain.Corrupt)
				return
			}
			if err := w.begin(e); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		second := tarReader{from: &again}
		for {
			_, err := second.next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err == nil {
				_, err = io.Copy(io.Discard, &second)
			}
			if err != nil {
				t.Fatalf("written again, it cannot be read: %v", err)
			}
		}
	})
}
