//go:build linux

package main

import (
	"io/fs"
	"path/filepath"
	"testing"
)

// A brain of a size is always the same, has that size, and holds a database and files.
func TestFill(t *testing.T) {
	const size = 3 * megabyte
	one, other := filepath.Join(t.TempDir(), "brain"), filepath.Join(t.TempDir(), "brain")
	for _, dir := range []string{one, other} {
		newFiller().fill(t.Context(), dir, size)
	}
	of, again := sums(t.Context(), one), sums(t.Context(), other)
	if of != again || of == "" {
		t.Errorf("two brains of the same size are %q and %q", of, again)
	}
	bytes, files := int64(0), 0
	err := filepath.WalkDir(one, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes, files = bytes+info.Size(), files+1
		}
		return err
	})
	if err != nil || files < 5 || bytes < size*9/10 || bytes > size*11/10 {
		t.Errorf("%d files with %d bytes, %v", files, bytes, err)
	}
}

// The sums of what is compared are those of each measurement, with the median of a start.
func TestBrainFigures(t *testing.T) {
	b := &bench{report: newReport(), rec: recorder{}}
	of := func(series string) string { return series + ", 20 MB" }
	b.rec.add(batchStart, 100)
	b.rec.add(coldStart, 300)
	b.rec.add(readyCold, 100)
	for _, ms := range []float64{1000, 1100, 1200} {
		b.rec.operation(of(taken), &stopwatch{total: ms, steps: map[string]float64{"send": 900}}, true)
		b.rec.add(of(packedByTar), 500)
		b.rec.operation(of(restored), &stopwatch{total: ms, steps: map[string]float64{"fetch": 400}}, true)
		b.rec.add(of(packedBack), 700)
	}
	b.addBrains(of)
	if len(b.figures) != 3 {
		t.Fatalf("%d figures: %+v", len(b.figures), b.figures)
	}
	near(t, "ratio of snapshots", b.figures[0].ratio, 1100.0/600)
	near(t, "ratio of restores", b.figures[1].ratio, 1100.0/1000)
	near(t, "the same with a volume that is ready", b.figures[2].ratio, 1100.0/800)
	if !b.figures[0].missed || b.figures[1].missed || b.figures[2].target != "" {
		t.Errorf("%+v", b.figures)
	}
}
