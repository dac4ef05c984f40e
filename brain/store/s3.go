package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/internal/pause"
)

// S3 is a Store in a bucket.
type S3 struct {
	core   *minio.Core
	bucket string
	prefix string // empty, or with a slash at its end
	sse    encrypt.ServerSide
}

// attempts is how often a request is sent. Callers repeat whole operations.
const attempts = 3

// Begin implements Store.
func (s *S3) Begin(ctx context.Context, of Snapshot) (string, error) {
	if err := of.check(); err != nil {
		return "", err
	}
	id, err := s.core.NewMultipartUpload(ctx, s.bucket, s.prefix+of.object(), minio.PutObjectOptions{
		ContentType: "application/octet-stream", ServerSideEncryption: s.sse,
	})
	return id, kind(err, "beginning an upload")
}

// PartURLs implements Store. It sends no request.
func (s *S3) PartURLs(ctx context.Context, of Snapshot, uploadID string, n int, valid time.Duration) ([]string, error) {
	if err := of.check(); err != nil {
		return nil, err
	}
	all := make([]string, n)
	for i := range all {
		u, err := s.core.Presign(ctx, http.MethodPut, s.bucket, s.prefix+of.object(), valid, url.Values{
			"partNumber": {strconv.Itoa(i + 1)}, "uploadId": {uploadID},
		})
		if err != nil {
			return nil, kind(err, "signing")
		}
		all[i] = u.String()
	}
	return all, nil
}

// Complete implements Store.
func (s *S3) Complete(ctx context.Context, of Snapshot, uploadID string, n int, size int64) error {
	if err := of.check(); err != nil {
		return err
	}
	err := s.complete(ctx, s.prefix+of.object(), uploadID, n, size)
	if brain.KindOf(err) != brain.NotFound {
		return err
	}
	// An earlier call may have completed it, and its response was lost. Some stores show the
	// object a moment later.
	for attempt := 1; ; attempt++ {
		info, e := s.core.StatObject(ctx, s.bucket, s.prefix+of.object(), minio.StatObjectOptions{})
		e = kind(e, "looking for the object of an upload")
		switch {
		case e == nil && info.Size == size:
			return nil
		case e == nil:
			return err
		case brain.KindOf(e) != brain.NotFound:
			return e // it is not known whether there is one
		case attempt == attempts || !pause.For(ctx, time.Second):
			return err
		}
	}
}

func (s *S3) complete(ctx context.Context, object, uploadID string, n int, size int64) error {
	var parts []minio.CompletePart
	total := int64(0)
	for marker := 0; len(parts) < n; {
		page, err := s.core.ListObjectParts(ctx, s.bucket, object, uploadID, marker, 1000)
		if err != nil {
			return kind(err, "listing the parts of an upload")
		}
		for _, p := range page.ObjectParts {
			if p.PartNumber > n {
				break
			}
			if p.PartNumber != len(parts)+1 {
				return brain.Errorf(brain.Corrupt, "the upload has no part %d", len(parts)+1)
			}
			parts = append(parts, minio.CompletePart{PartNumber: p.PartNumber, ETag: p.ETag})
			total += p.Size
		}
		if len(page.ObjectParts) == 0 || !page.IsTruncated {
			break
		}
		marker = page.NextPartNumberMarker
	}
	if len(parts) != n || total != size {
		return brain.Errorf(brain.Corrupt, "the upload has %d parts of %d with %d bytes of %d", len(parts), n, total, size)
	}
	_, err := s.core.CompleteMultipartUpload(ctx, s.bucket, object, uploadID, parts, minio.PutObjectOptions{})
	return kind(err, "completing an upload")
}

// Abort implements Store.
func (s *S3) Abort(ctx context.Context, of Snapshot, uploadID string) error {
	if err := of.check(); err != nil {
		return err
	}
	return ignoreMissing(kind(s.core.AbortMultipartUpload(ctx, s.bucket, s.prefix+of.object(), uploadID), "aborting an upload"))
}

func ignoreMissing(err error) error {
	if brain.KindOf(err) == brain.NotFound {
		return nil
	}
	return err
}

// Sweep implements Store.
func (s *S3) Sweep(ctx context.Context, before time.Time) (int, error) {
	return s.abortAll(ctx, "objects/", func(began time.Time) bool { return began.Before(before) })
}

// abortAll aborts the uploads of objects whose names begin with a prefix and that
// which selects, and returns how many.
func (s *S3) abortAll(ctx context.Context, prefix string, which func(began time.Time) bool) (int, error) {
	aborted := 0
	keyMarker, idMarker := "", ""
	for {
		page, err := s.core.ListMultipartUploads(ctx, s.bucket, s.prefix+prefix, keyMarker, idMarker, "", 1000)
		if err != nil {
			return aborted, kind(err, "listing uploads")
		}
		for _, u := range page.Uploads {
			if !which(u.Initiated) {
				continue
			}
			if err := ignoreMissing(kind(s.core.AbortMultipartUpload(ctx, s.bucket, u.Key, u.UploadID), "aborting an upload")); err != nil {
				return aborted, err
			}
			aborted++
		}
		if !page.IsTruncated {
			return aborted, nil
		}
		keyMarker, idMarker = page.NextKeyMarker, page.NextUploadIDMarker
	}
}

// ObjectURL implements Store. It sends no request.
func (s *S3) ObjectURL(ctx context.Context, of Snapshot, valid time.Duration) (string, error) {
	if err := of.check(); err != nil {
		return "", err
	}
	u, err := s.core.Presign(ctx, http.MethodGet, s.bucket, s.prefix+of.object(), valid, nil)
	if err != nil {
		return "", kind(err, "signing")
	}
	return u.String(), nil
}

// PutManifest implements Store.
func (s *S3) PutManifest(ctx context.Context, m *brain.Manifest) error {
	of, text, err := format(m)
	if err != nil {
		return err
	}
	_, err = s.core.Client.PutObject(ctx, s.bucket, s.prefix+of.manifest(), bytes.NewReader(text), int64(len(text)), minio.PutObjectOptions{
		ContentType: "application/json", ServerSideEncryption: s.sse, DisableMultipart: true, SendContentMd5: true,
	})
	return kind(err, "writing a manifest")
}

// Manifest implements Store.
func (s *S3) Manifest(ctx context.Context, of Snapshot) (*brain.Manifest, error) {
	if err := of.check(); err != nil {
		return nil, err
	}
	const what = "reading a manifest"
	r, _, _, err := s.core.GetObject(ctx, s.bucket, s.prefix+of.manifest(), minio.GetObjectOptions{})
	if err != nil {
		return nil, kind(err, what)
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxManifest))
	if err != nil {
		return nil, kind(err, what)
	}
	return parse(of, text)
}

// List implements Store.
func (s *S3) List(ctx context.Context, engineID string) iter.Seq2[Snapshot, error] {
	return s.list(ctx, engineID, minio.ListObjectsOptions{Prefix: s.prefix + "manifests/" + engineID + "/"})
}

// All implements Store.
func (s *S3) All(ctx context.Context, after string) iter.Seq2[Snapshot, error] {
	from := minio.ListObjectsOptions{Prefix: s.prefix + "manifests/"}
	if after == "" {
		return s.list(ctx, "all", from)
	}
	from.StartAfter = from.Prefix + after + "0" // the character after the slash
	return s.list(ctx, after, from)
}

// list lists what of selects. engineID is the engine in it.
func (s *S3) list(ctx context.Context, engineID string, of minio.ListObjectsOptions) iter.Seq2[Snapshot, error] {
	of.Recursive = true
	return func(yield func(Snapshot, error) bool) {
		if !brain.IsID(engineID) {
			yield(Snapshot{}, brain.Errorf(brain.BadOrder, "%q is no id of an engine", engineID))
			return
		}
		for o := range s.core.Client.ListObjectsIter(ctx, s.bucket, of) {
			if o.Err != nil {
				yield(Snapshot{}, kind(o.Err, "listing snapshots"))
				return
			}
			if of, ok := snapshotOf(strings.TrimPrefix(o.Key, s.prefix)); ok && !yield(of, nil) {
				return
			}
		}
	}
}

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, of Snapshot) error {
	if err := of.check(); err != nil {
		return err
	}
	for _, name := range []string{of.object(), of.manifest()} {
		err := s.core.Client.RemoveObject(ctx, s.bucket, s.prefix+name, minio.RemoveObjectOptions{})
		if err := ignoreMissing(kind(err, fmt.Sprintf("deleting snapshot %s", of.SnapshotID))); err != nil {
			return err
		}
	}
	return nil
}
