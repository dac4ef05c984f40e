package store

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/septemberai/orch/brain"
)

func checkEngine(engineID string) error {
	if !brain.IsID(engineID) {
		return brain.Errorf(brain.BadOrder, "%q is no id of an engine", engineID)
	}
	return nil
}

// Erase implements Store.
func (s *S3) Erase(ctx context.Context, engineID string) (int, error) {
	if err := checkEngine(engineID); err != nil {
		return 0, err
	}
	objects, manifests := "objects/"+engineID+"/", "manifests/"+engineID+"/"
	if _, err := s.abortAll(ctx, objects, func(time.Time) bool { return true }); err != nil {
		return 0, err
	}
	if _, err := s.removeAll(ctx, objects); err != nil {
		return 0, err
	}
	return s.removeAll(ctx, manifests)
}

// removeAll removes the objects whose names begin with a prefix, and returns how many of them
// were manifests.
func (s *S3) removeAll(ctx context.Context, prefix string) (int, error) {
	what := fmt.Sprintf("removing %s", prefix)
	removed := 0
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for o := range s.core.Client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}) {
		if o.Err != nil {
			return removed, kind(o.Err, what)
		}
		err := s.core.Client.RemoveObject(ctx, s.bucket, o.Key, minio.RemoveObjectOptions{})
		if err := ignoreMissing(kind(err, what)); err != nil {
			return removed, err
		}
		if _, ok := snapshotOf(strings.TrimPrefix(o.Key, s.prefix)); ok {
			removed++
		}
	}
	return removed, nil
}

// Erase implements Store. It does not find uploads that a version of before began, which did
// not name their engine.
func (d *Dir) Erase(_ context.Context, engineID string) (int, error) {
	if err := checkEngine(engineID); err != nil {
		return 0, err
	}
	if err := d.present(); err != nil {
		return 0, err
	}
	const what = "removing what an engine has stored"
	manifests, err := names(d.path("manifests/" + engineID))
	if err != nil {
		return 0, local(err, what)
	}
	removed := 0
	for _, file := range manifests {
		if _, ok := snapshotOf("manifests/" + engineID + "/" + file); ok {
			removed++
		}
	}
	paths := []string{d.path("objects/" + engineID), d.path("manifests/" + engineID)}
	uploads, err := names(d.path("uploads"))
	if err != nil {
		return 0, local(err, what)
	}
	for _, upload := range uploads {
		if strings.HasPrefix(upload, engineID+".") {
			paths = append(paths, d.path("uploads/"+upload))
		}
	}
	for _, path := range paths {
		if err := os.RemoveAll(path); err != nil {
			return 0, local(err, what)
		}
	}
	return removed, nil
}
