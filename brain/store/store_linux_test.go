package store_test

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/brain/store/storetest"
)

func open(t *testing.T, at string) store.Store {
	t.Helper()
	s, err := store.Open(at, storetest.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantKind(t *testing.T, err error, want brain.Kind) {
	t.Helper()
	if got := brain.KindOf(err); got != want {
		t.Errorf("the error is %v, of kind %q; want %q", err, got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put stores data at a URL that a store has signed.
func put(t *testing.T, at string, data []byte) {
	t.Helper()
	u, err := url.Parse(at)
	must(t, err)
	if u.Scheme == "file" {
		must(t, os.WriteFile(u.Path, data, 0o600))
		return
	}
	r, err := http.NewRequest(http.MethodPut, at, bytes.NewReader(data))
	must(t, err)
	answer, err := http.DefaultClient.Do(r)
	must(t, err)
	defer answer.Body.Close()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", answer.Status, text)
	}
}

// get reads what is at a URL; nil: there is nothing.
func get(t *testing.T, at string) []byte {
	t.Helper()
	u, err := url.Parse(at)
	must(t, err)
	if u.Scheme == "file" {
		text, _ := os.ReadFile(u.Path)
		return text
	}
	answer, err := http.Get(at)
	must(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(t, err)
	if answer.StatusCode != http.StatusOK {
		return nil
	}
	return text
}

func manifest(of store.Snapshot) *brain.Manifest {
	return &brain.Manifest{
		Format: brain.Format, SnapshotID: of.SnapshotID, EngineID: of.EngineID, Recipient: "age1of", CreatedAt: time.Unix(1e9, 5).UTC(),
		Content: brain.Content{SHA256: strings.Repeat("a", 64), TarSHA256: strings.Repeat("b", 64), StoredBytes: 3, TarBytes: 4},
	}
}

// What every store does, on a real S3 server and in a directory.
func TestStore(t *testing.T) {
	for name, url := range map[string]func(t *testing.T) string{
		"S3":  func(t *testing.T) string { return storetest.Start(t).StoreURL("") },
		"Dir": func(t *testing.T) string { return "file://" + t.TempDir() },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, url(t))
			t.Run("Upload", func(t *testing.T) { upload(t, s) })
			t.Run("Manifests", func(t *testing.T) { manifests(t, s) })
			t.Run("Sweep", func(t *testing.T) { sweep(t, s) })
			t.Run("Erase", func(t *testing.T) { erase(t, s) })
		})
	}
}

func upload(t *testing.T, s store.Store) {
	of := store.Snapshot{EngineID: "engine1", SnapshotID: "snap1"}
	ctx := t.Context()
	id, err := s.Begin(ctx, of)
	must(t, err)
	urls, err := s.PartURLs(ctx, of, id, 3, time.Hour)
	must(t, err)
	large := bytes.Repeat([]byte("0123456789abcdef"), brain.MinPart/16)
	wantKind(t, s.Complete(ctx, of, id, 1, 5), brain.Corrupt) // no part
	put(t, urls[1], []byte("the end"))
	wantKind(t, s.Complete(ctx, of, id, 2, int64(len(large)+7)), brain.Corrupt) // no first part
	put(t, urls[0], []byte("replaced by the same part, sent again"))
	put(t, urls[0], large)
	put(t, urls[2], []byte("of an earlier attempt"))
	wantKind(t, s.Complete(ctx, of, id, 2, int64(len(large)+8)), brain.Corrupt) // another size
	object, err := s.ObjectURL(ctx, of, time.Hour)
	must(t, err)
	if got := get(t, object); got != nil {
		t.Errorf("there is an object of %d bytes before its upload is complete", len(got))
	}
	must(t, s.Complete(ctx, of, id, 2, int64(len(large)+7)))
	must(t, s.Complete(ctx, of, id, 2, int64(len(large)+7))) // the first answer was lost
	wantKind(t, s.Complete(ctx, of, id, 2, 5), brain.NotFound)
	if got := get(t, object); !bytes.Equal(got, append(large, "the end"...)) {
		t.Errorf("the object has %d bytes", len(got))
	}
	must(t, s.Abort(ctx, of, id))
	must(t, s.Delete(ctx, of))
	must(t, s.Delete(ctx, of))
	if got := get(t, object); got != nil {
		t.Errorf("a deleted object has %d bytes", len(got))
	}
	for _, bad := range []store.Snapshot{{}, {EngineID: "..", SnapshotID: "a"}, {EngineID: "a", SnapshotID: "b/c"}, {EngineID: "A", SnapshotID: "b"}} {
		_, err := s.Begin(ctx, bad)
		wantKind(t, err, brain.BadOrder)
		wantKind(t, s.Delete(ctx, bad), brain.BadOrder)
	}
}

func manifests(t *testing.T, s store.Store) {
	ctx := t.Context()
	read := func(list iter.Seq2[store.Snapshot, error]) (all []store.Snapshot) {
		for of, err := range list {
			must(t, err)
			all = append(all, of)
		}
		return all
	}
	list := func(engine string) []store.Snapshot { return read(s.List(ctx, engine)) }
	if got := read(s.All(ctx, "")); len(got) > 0 {
		t.Errorf("an empty store lists %v", got)
	}
	var want []store.Snapshot
	for _, engine := range []string{"engine1", "engine10"} {
		for i := range 3 {
			of := store.Snapshot{EngineID: engine, SnapshotID: fmt.Sprintf("snap%d", i)}
			want = append(want, of)
			must(t, s.PutManifest(ctx, manifest(of)))
		}
	}
	got := read(s.All(ctx, ""))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[:3], list("engine1")); diff != "" {
		t.Errorf("of one engine (-want +got):\n%s", diff)
	}
	for after, want := range map[string][]store.Snapshot{"engine1": want[3:], "engine10": nil, "a": want, "z": nil} {
		if diff := cmp.Diff(want, read(s.All(ctx, after))); diff != "" {
			t.Errorf("behind %s (-want +got):\n%s", after, diff)
		}
	}
	for _, err := range s.All(ctx, "../x") {
		wantKind(t, err, brain.BadOrder)
	}
	m, err := s.Manifest(ctx, want[1])
	must(t, err)
	if diff := cmp.Diff(manifest(want[1]), m); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
	_, err = s.Manifest(ctx, store.Snapshot{EngineID: "engine1", SnapshotID: "other"})
	wantKind(t, err, brain.NotFound)
	must(t, s.Delete(ctx, want[1]))
	_, err = s.Manifest(ctx, want[1])
	wantKind(t, err, brain.NotFound)
	if got := list("engine1"); len(got) != 2 {
		t.Errorf("after a deletion: %v", got)
	}
	future := manifest(want[0])
	future.Format++
	wantKind(t, s.PutManifest(ctx, future), brain.Corrupt)
}

func sweep(t *testing.T, s store.Store) {
	ctx := t.Context()
	var ids []string
	for i := range 3 {
		of := store.Snapshot{EngineID: "engine1", SnapshotID: fmt.Sprintf("half%d", i)}
		id, err := s.Begin(ctx, of)
		must(t, err)
		urls, err := s.PartURLs(ctx, of, id, 1, time.Hour)
		must(t, err)
		put(t, urls[0], []byte("half"))
		ids = append(ids, id)
	}
	must(t, s.Abort(ctx, store.Snapshot{EngineID: "engine1", SnapshotID: "half1"}, ids[1]))
	if n, err := s.Sweep(ctx, time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Errorf("%d uploads of this hour were swept, %v", n, err)
	}
	if n, err := s.Sweep(ctx, time.Now().Add(time.Hour)); n != 2 || err != nil {
		t.Errorf("%d uploads were swept, want 2; %v", n, err)
	}
	wantKind(t, s.Complete(ctx, store.Snapshot{EngineID: "engine1", SnapshotID: "half0"}, ids[0], 1, 4), brain.NotFound)
	if n, err := s.Sweep(ctx, time.Now().Add(time.Hour)); n != 0 || err != nil {
		t.Errorf("%d uploads were left, %v", n, err)
	}
}

// How a store responds decides about the kind of an error. No error names a key or signature.
func TestErrors(t *testing.T) {
	g := storetest.Start(t)
	p := storetest.StartProxy(t, g.Addr)
	s := open(t, g.StoreURL(p.Addr))
	of := store.Snapshot{EngineID: "engine1", SnapshotID: "snap1"}
	answers := func(status int, code string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { storetest.Status(w, status, code); return true }
	}
	for name, c := range map[string]struct {
		hook func(http.ResponseWriter, *http.Request) bool
		want brain.Kind
	}{
		"Unavailable": {answers(503, "SlowDown"), brain.Away},
		"Forbidden":   {answers(403, "AccessDenied"), brain.Refused},
		"Quota":       {answers(403, "QuotaExceeded"), brain.OverQuota},
		"Full":        {answers(507, "InsufficientStorage"), brain.OverQuota},
		"NoBucket":    {answers(404, "NoSuchBucket"), brain.NotFound},
		"Lost":        {func(_ http.ResponseWriter, r *http.Request) bool { storetest.Lose(r, 0); return true }, brain.Away},
		"OK":          {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p.Hook(c.hook)
			_, err := s.Begin(t.Context(), of)
			wantKind(t, err, c.want)
			wantKind(t, s.PutManifest(t.Context(), manifest(of)), c.want)
			if err != nil && (strings.Contains(err.Error(), storetest.Credentials.AccessKey) || strings.Contains(err.Error(), "Signature")) {
				t.Errorf("the error names a secret: %v", err)
			}
			for _, err := range s.List(t.Context(), "engine1") {
				wantKind(t, err, c.want)
			}
		})
	}
	p.Hook(nil)
	wrong, err := store.Open(g.StoreURL(""), store.Credentials{AccessKey: storetest.Credentials.AccessKey, SecretKey: "wrong"})
	must(t, err)
	_, err = wrong.Begin(t.Context(), of)
	wantKind(t, err, brain.Refused)
	_, err = open(t, "s3://brains?endpoint=http://127.0.0.1:1").Begin(t.Context(), of)
	wantKind(t, err, brain.Away)
	_, err = open(t, "file://"+filepath.Join(t.TempDir(), "not", "mounted")).Begin(t.Context(), of)
	wantKind(t, err, brain.Away)
}

func TestOpen(t *testing.T) {
	for _, at := range []string{
		"", "x", "s3://", "https://host/bucket", "file://relative/path", "file:path", "file:///d?a=b", "s3://key:secret@bucket", "s3://bucket?acess_key=x",
		"s3://bucket?endpoint=host:9000", "s3://bucket?endpoint=http://host/path", "s3://bucket?sse=none", "://",
	} {
		if _, err := store.Open(at, storetest.Credentials); brain.KindOf(err) != brain.BadOrder {
			t.Errorf("%q: %v", at, err)
		}
	}
	for _, at := range []string{"s3://bucket", "s3://bucket/a/b?region=eu-central-1&sse=AES256", "s3://bucket?sse=aws:kms&kms_key=k", "file:///d"} {
		if _, err := store.Open(at, storetest.Credentials); err != nil {
			t.Errorf("%q: %v", at, err)
		}
	}
	if _, err := store.Open("s3://bucket", store.Credentials{CA: "none"}); brain.KindOf(err) != brain.BadOrder {
		t.Errorf("a CA that is none: %v", err)
	}
}

// A Nomad variable holds 64 KiB, and so many URLs fit into it.
func TestURLsOfAnUpload(t *testing.T) {
	g := storetest.Start(t)
	s := open(t, g.StoreURL(""))
	of := store.Snapshot{EngineID: strings.Repeat("e", 26), SnapshotID: strings.Repeat("s", 26)}
	id, err := s.Begin(t.Context(), of)
	must(t, err)
	urls, err := s.PartURLs(t.Context(), of, id, 700, time.Hour)
	must(t, err)
	text, err := brain.URLs(urls).MarshalJSON()
	must(t, err)
	t.Logf("%d URLs of %d bytes each need %d bytes", len(urls), len(urls[0]), len(text))
	if len(text) > 56<<10 {
		t.Errorf("%d URLs need %d bytes", len(urls), len(text))
	}
	var back brain.URLs
	must(t, back.UnmarshalJSON(text))
	if !slices.Equal(back, urls) {
		t.Error("other URLs come back")
	}
}
