package archive

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/septemberai/orch/brain"
)

// Unpacked describes what Unpack restored.
type Unpacked struct {
	Entries int64
	// TopModes are the modes of directories at the top that their owner may not write. A
	// directory that is to be moved must be writable, so they get their mode afterwards.
	TopModes map[string]uint32 // bits of 07777, as chmod(2) takes them
}

// Unpack reads what Pack wrote from r, and restores it into the empty directory at path.
// Everything belongs to this process's user. The mode and the time of the directory itself
// are not changed.
//
// It trusts nothing that it reads. What is in path is only worth something when Unpack
// returns no error: then both sums and all sizes are those of want. Errors have the kind
// Corrupt if the archive is truncated, altered, encrypted for another identity, or would
// write outside of path; NoRoom if the disk is full. Errors of r are returned as they are.
func Unpack(ctx context.Context, r io.Reader, want brain.Content, identity, path string) (Unpacked, error) {
	id, err := age.ParseX25519Identity(identity)
	if err != nil {
		return Unpacked{}, &brain.Error{Kind: brain.BadOrder, Message: "the identity is no secret key of age"}
	}
	top, err := os.OpenRoot(path)
	if err != nil {
		return Unpacked{}, brain.Local(err, brain.Internal, "the target cannot be opened")
	}
	stored := &meter{from: r, sum: sha256.New(), most: want.StoredBytes}
	done, err := unpack(ctx, stored, want, id, top)
	switch {
	case stored.err != nil: // whatever followed from that
		return Unpacked{}, stored.err
	case err != nil:
		return Unpacked{}, err
	case stored.n != want.StoredBytes || stored.hex() != want.SHA256:
		return Unpacked{}, corrupt("the object has another sum or size")
	}
	return done, nil
}

func unpack(ctx context.Context, stored io.Reader, want brain.Content, id age.Identity, top *os.Root) (Unpacked, error) {
	d := newDirs(top)
	defer d.close()
	plain, err := age.Decrypt(stored, id)
	if err != nil {
		return Unpacked{}, corrupt("it cannot be decrypted with this identity")
	}
	// Two: one goroutine decompresses while this one writes.
	z, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
	if err != nil {
		return Unpacked{}, corrupt("it cannot be decompressed")
	}
	defer z.Close()
	tar := &meter{from: damaged{z}, sum: sha256.New(), most: want.TarBytes}
	t := tarReader{from: bufio.NewReaderSize(tar, 256<<10)}
	for {
		if err := ctx.Err(); err != nil {
			return Unpacked{}, err
		}
		e, err := t.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = d.restore(e, &t)
		}
		if err != nil {
			return Unpacked{}, brain.Local(err, brain.Internal, "an entry cannot be restored")
		}
	}
	if tar.n != want.TarBytes || tar.hex() != want.TarSHA256 {
		return Unpacked{}, corrupt("it has another sum or size")
	}
	// Nothing is after the end of the compressed data.
	if n, err := plain.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return Unpacked{}, corrupt("it goes on after its end")
	}
	return Unpacked{Entries: d.entries, TopModes: d.topModes}, d.finish()
}

// meter counts and sums what is read, and keeps the error of its source. More than most is
// an error.
type meter struct {
	from io.Reader
	sum  hash.Hash
	most int64
	n    int64
	err  error
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.from.Read(p)
	_, _ = m.sum.Write(p[:n])
	m.n += int64(n)
	if m.n > m.most {
		return 0, corrupt("it is longer than it was")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		m.err = err
	}
	return n, err
}

func (m *meter) hex() string { return hex.EncodeToString(m.sum.Sum(nil)) }

// damaged makes every error of decryption and decompression one of the kind Corrupt.
type damaged struct{ from io.Reader }

func (d damaged) Read(p []byte) (int, error) {
	n, err := d.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = corrupt("it cannot be decrypted or decompressed")
	}
	return n, err
}
