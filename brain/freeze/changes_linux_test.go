package freeze

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/septemberai/orch/brain/tree"
)

// TestChanged: a copy of a tree in which somebody writes, truncates and removes is made, and
// says that it is not of one moment.
func TestChanged(t *testing.T) {
	dir, err := os.MkdirTemp("", "freeze")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Remove(dir) })
	from := filepath.Join(dir, "from")
	for n := range 1000 {
		sub := filepath.Join(from, fmt.Sprint(n%10))
		if err := errors.Join(os.MkdirAll(sub, 0o700), os.WriteFile(filepath.Join(sub, fmt.Sprint(n)), make([]byte, 128<<10), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if stats, err := Copy(t.Context(), from, filepath.Join(dir, "quiet")); err != nil || stats.Changed != 0 {
		t.Fatalf("of a quiet tree: %+v, %v", stats, err)
	}
	begun, over := make(chan struct{}), make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-over:
				return
			default:
			}
			short, temp := filepath.Join(from, "9", "short"), filepath.Join(from, fmt.Sprint(n%10), "temp")
			err := errors.Join(os.WriteFile(short, make([]byte, 256<<10), 0o600), os.Truncate(short, 1), os.Mkdir(temp, 0o700), os.Remove(temp))
			if err != nil {
				t.Error(err)
				return
			}
			if n == 0 {
				close(begun)
			}
		}
	})
	<-begun
	for n := range 5 {
		if stats, err := Copy(t.Context(), from, filepath.Join(dir, fmt.Sprint("busy", n))); err != nil || stats.Changed == 0 {
			t.Errorf("while somebody writes: %+v, %v", stats, err)
		}
	}
	close(over)
	writer.Wait()
}
