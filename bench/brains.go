//go:build linux

package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // the driver of the database in a brain
)

const megabyte = 1_000_000

// filler makes the content of brains: always the same for the same size.
type filler struct {
	noise *rand.ChaCha8
	words [][]byte
	zipf  *rand.Zipf
}

func newFiller() *filler {
	f := &filler{noise: rand.NewChaCha8([32]byte{1})}
	r := rand.New(f.noise)
	f.zipf = rand.NewZipf(r, 1.3, 4, 4999) // roughly how often words occur in texts
	for range 5000 {
		word := make([]byte, 2+r.IntN(9))
		for i := range word {
			word[i] = byte('a' + r.IntN(26))
		}
		f.words = append(f.words, append(word, ' '))
	}
	return f
}

// text returns words, which a compression makes several times smaller.
func (f *filler) text(n int) []byte {
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, f.words[f.zipf.Uint64()]...)
	}
	return b[:n]
}

// random returns what cannot be compressed, as pictures and embeddings.
func (f *filler) random(n int) []byte {
	b := make([]byte, n)
	_, _ = f.noise.Read(b) // it returns no error
	return b
}

// fill writes about so many bytes into a new directory: a half in a SQLite database of texts
// with embeddings, the rest in files, of which texts and incompressible ones alternate.
func (f *filler) fill(ctx context.Context, dir string, size int) {
	check(os.Mkdir(dir, 0o755))
	f.database(ctx, filepath.Join(dir, "memory.db"), size/2)
	lengths := []int{4 << 10, 64 << 10, 1 << 20, 6 << 20}
	for i, left := 0, size/2; left > 0; i++ {
		n, sub := min(left, lengths[i/2%len(lengths)]), filepath.Join(dir, fmt.Sprint("files-", i/100))
		if i%100 == 0 {
			check(os.Mkdir(sub, 0o755))
		}
		content := f.text
		if i%2 == 1 {
			content = f.random
		}
		check(os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), content(n), 0o600))
		left -= n
	}
}

// database writes a SQLite database of about so many bytes.
func (f *filler) database(ctx context.Context, path string, size int) {
	const textBytes, embeddingBytes, overhead = 1200, 2560, 300 // in one page of 4 KiB
	db := must(sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(off)&_pragma=synchronous(off)"))
	defer func() { _ = db.Close() }() // Commit has reported the errors
	must(db.ExecContext(ctx, "CREATE TABLE memory (id INTEGER PRIMARY KEY, text TEXT, embedding BLOB)"))
	tx := must(db.BeginTx(ctx, nil))
	insert := must(tx.PrepareContext(ctx, "INSERT INTO memory (text, embedding) VALUES (?, ?)"))
	for range size / (textBytes + embeddingBytes + overhead) {
		must(insert.ExecContext(ctx, string(f.text(textBytes)), f.random(embeddingBytes)))
	}
	check(insert.Close())
	check(tx.Commit())
}

// sums returns the checksum of each file of a directory.
func sums(ctx context.Context, dir string) string {
	return command(ctx, "sh", "-c", `cd "$1" && find . -type f -exec sha256sum {} + | sort`, "sh", dir)
}
