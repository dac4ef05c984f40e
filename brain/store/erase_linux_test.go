package store_test

import (
	"testing"
	"time"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
)

// erase: of an engine nothing is left: no snapshot, no object without a manifest, no manifest
// without an object, and no upload. Others keep what they have.
func erase(t *testing.T, s store.Store) {
	ctx := t.Context()
	begun := func(of store.Snapshot) (uploadID string) {
		t.Helper()
		id, err := s.Begin(ctx, of)
		must(t, err)
		urls, err := s.PartURLs(ctx, of, id, 1, time.Hour)
		must(t, err)
		put(t, urls[0], []byte("part"))
		return id
	}
	object := func(of store.Snapshot) []byte {
		t.Helper()
		at, err := s.ObjectURL(ctx, of, time.Hour)
		must(t, err)
		return get(t, at)
	}
	complete := func(of store.Snapshot) { t.Helper(); must(t, s.Complete(ctx, of, begun(of), 1, 4)) }
	uploads := map[string]string{}
	for _, engine := range []string{"erased", "erased1"} {
		of := func(id string) store.Snapshot { return store.Snapshot{EngineID: engine, SnapshotID: id} }
		for _, id := range []string{"whole", "without"} {
			complete(of(id))
		}
		must(t, s.PutManifest(ctx, manifest(of("whole"))))
		must(t, s.PutManifest(ctx, manifest(of("alone"))))
		uploads[engine] = begun(of("upload"))
	}
	for i, want := range []int{2, 0} { // again is no error
		if n, err := s.Erase(ctx, "erased"); n != want || err != nil {
			t.Errorf("call %d removed %d manifests, %v; want %d", i, n, err, want)
		}
	}
	for _, id := range []string{"whole", "without"} {
		if object(store.Snapshot{EngineID: "erased", SnapshotID: id}) != nil {
			t.Errorf("the object %s is left", id)
		}
		if object(store.Snapshot{EngineID: "erased1", SnapshotID: id}) == nil {
			t.Errorf("the object %s of another engine is gone", id)
		}
	}
	for engine, want := range map[string]int{"erased": 0, "erased1": 2} {
		n := 0
		for _, err := range s.List(ctx, engine) {
			must(t, err)
			n++
		}
		if n != want {
			t.Errorf("%s has %d manifests, want %d", engine, n, want)
		}
	}
	wantKind(t, s.Complete(ctx, store.Snapshot{EngineID: "erased", SnapshotID: "upload"}, uploads["erased"], 1, 4), brain.NotFound)
	must(t, s.Complete(ctx, store.Snapshot{EngineID: "erased1", SnapshotID: "upload"}, uploads["erased1"], 1, 4))
	for _, bad := range []string{"", "..", "a/b", "a."} {
		_, err := s.Erase(ctx, bad)
		wantKind(t, err, brain.BadOrder)
	}
}
