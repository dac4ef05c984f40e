// Package store keeps snapshots: in a bucket of an S3-compatible store, or in a directory.
// Everything about a snapshot is in the store itself, so that a deployment that lost all
// else finds its snapshots again.
//
//	objects/ENGINE/SNAPSHOT.tar.zst.age   what a worker made
//	manifests/ENGINE/SNAPSHOT.json        what it is; written when the object is complete
package store

import (
	"context"
	"encoding/json"
	"iter"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/septemberai/orch/brain"
)

// Store is where snapshots are. All errors have a kind of package brain: Away, Refused,
// OverQuota, NotFound, Corrupt or BadOrder. Every method may be called again after an error.
//
// A worker has no credentials. It gets URLs that are valid for a limited time.
type Store interface {
	// Begin starts the upload of an object in parts.
	Begin(ctx context.Context, s Snapshot) (uploadID string, err error)
	// PartURLs returns the URLs for the parts from 1 to n of an upload, to be called with PUT.
	PartURLs(ctx context.Context, s Snapshot, uploadID string, n int, valid time.Duration) ([]string, error)
	// Complete makes an object of the parts from 1 to n, which have the given size together.
	// If the object exists already with that size, that is a success. NotFound: the upload
	// does not exist; Corrupt: parts are missing or have another size. Only ctx limits how
	// long the store may take.
	Complete(ctx context.Context, s Snapshot, uploadID string, n int, size int64) error
	// Abort removes an upload and its parts. If there is none, that is a success.
	Abort(ctx context.Context, s Snapshot, uploadID string) error
	// Sweep aborts the uploads of this store that began before a time, and returns how many.
	// It removes no object, not even one without a manifest: that one may get it later.
	Sweep(ctx context.Context, before time.Time) (int, error)

	// ObjectURL returns a URL from which an object can be read.
	ObjectURL(ctx context.Context, s Snapshot, valid time.Duration) (string, error)
	// PutManifest writes a manifest. The object must be complete.
	PutManifest(ctx context.Context, m *brain.Manifest) error
	// Manifest reads a manifest; Corrupt: it is not one of this snapshot.
	Manifest(ctx context.Context, s Snapshot) (*brain.Manifest, error)
	// List returns the snapshots of one engine that have a manifest. An error ends the list:
	// what did not come is not known to be missing.
	List(ctx context.Context, engineID string) iter.Seq2[Snapshot, error]
	// All is like List for all engines or, if after is not empty, for those behind that one in
	// the store's order. The snapshots of an engine come one after the other.
	All(ctx context.Context, after string) iter.Seq2[Snapshot, error]
	// Delete removes the object, then the manifest. If there is none, that is a success.
	Delete(ctx context.Context, s Snapshot) error
	// Erase removes everything of an engine: uploads that are not complete, objects with and
	// without a manifest, and manifests. It returns how many manifests there were.
	Erase(ctx context.Context, engineID string) (int, error)
}

// Snapshot names a snapshot.
type Snapshot struct{ EngineID, SnapshotID string }

const (
	objectEnding   = ".tar.zst.age"
	manifestEnding = ".json"
	// maxManifest limits what is read of a manifest, in bytes.
	maxManifest = 64 << 10
	// MaxParts is how many parts an upload can have (Amazon S3, "multipart upload limits").
	MaxParts = 10_000
)

func (s Snapshot) object() string { return "objects/" + s.EngineID + "/" + s.SnapshotID + objectEnding }

func (s Snapshot) manifest() string {
	return "manifests/" + s.EngineID + "/" + s.SnapshotID + manifestEnding
}

// check returns an error if the names could be those of something else in the store.
func (s Snapshot) check() error {
	if !brain.IsID(s.EngineID) || !brain.IsID(s.SnapshotID) {
		return brain.Errorf(brain.BadOrder, "%q and %q are not the ids of an engine and a snapshot", s.EngineID, s.SnapshotID)
	}
	return nil
}

// snapshotOf is the reverse of manifest. Other names are not of this package.
func snapshotOf(name string) (Snapshot, bool) {
	rest, isManifest := strings.CutPrefix(name, "manifests/")
	engine, file := path.Split(rest)
	id, isJSON := strings.CutSuffix(file, manifestEnding)
	s := Snapshot{strings.TrimSuffix(engine, "/"), id}
	return s, isManifest && isJSON && s.check() == nil
}

// parse reads the manifest of a snapshot.
func parse(s Snapshot, text []byte) (*brain.Manifest, error) {
	m, err := brain.ParseManifest(text)
	if err != nil {
		return nil, err
	}
	if m.EngineID != s.EngineID || m.SnapshotID != s.SnapshotID {
		return nil, brain.Errorf(brain.Corrupt, "the manifest of %s is that of another snapshot", s.SnapshotID)
	}
	return m, nil
}

// format is the reverse of parse.
func format(m *brain.Manifest) (Snapshot, []byte, error) {
	s := Snapshot{m.EngineID, m.SnapshotID}
	if err := m.Check(); err != nil {
		return s, nil, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	return s, append(text, '\n'), err
}

// Credentials are for an S3 store. Without an access key they are looked for as Amazon's
// tools do: in the environment, and from the metadata service of an instance or container.
type Credentials struct {
	AccessKey, SecretKey string
	CA                   string // authorities in PEM; empty: those of the system
}

// Open returns the store at a URL:
//
//	s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION&sse=AES256
//	file:///DIRECTORY
//
// sse is AES256 or aws:kms, the latter with kms_key. The bucket or directory is not
// looked at. The error has the kind BadOrder.
func Open(at string, c Credentials) (Store, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, brain.Errorf(brain.BadOrder, "the URL of the snapshot store is invalid")
	}
	switch {
	case u.User != nil:
		return nil, brain.Errorf(brain.BadOrder, "the URL of the snapshot store must not contain credentials")
	case u.Scheme == "s3" && u.Host != "":
		return openS3(u, c)
	case u.Scheme == "file" && u.Host == "" && path.IsAbs(u.Path) && u.RawQuery == "":
		return &Dir{root: path.Clean(u.Path)}, nil
	}
	return nil, brain.Errorf(brain.BadOrder, "the URL of the snapshot store must be s3://BUCKET/PREFIX or file:///DIRECTORY")
}
