package transfer

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"
)

type noted map[int]Part

func (n noted) Part(number int) (Part, bool) { p, ok := n[number]; return p, ok }

func (n noted) Note(p Part) error { n[p.Number] = p; return nil }

// What was collected of a part when an upload is aborted is not that part. If it were noted,
// the next start would find another sum, and send everything again.
func TestAbortedPartIsNotNoted(t *testing.T) {
	client, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const size = 1000
	journal := noted{}
	dir := t.TempDir()
	u := client.Upload(t.Context(), []string{"file://" + filepath.Join(dir, "1"), "file://" + filepath.Join(dir, "2")}, size, journal)
	if _, err := u.Write(bytes.Repeat([]byte("x"), size*3/2)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); u.Sent() < size; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the first part is not stored")
		}
	}
	u.Abort()
	if p := journal[1]; !p.Stored || len(journal) != 1 {
		t.Errorf("noted: %+v, want the first part alone", journal)
	}
}
