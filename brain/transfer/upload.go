package transfer

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // G501: Content-MD5 finds accidents, not attacks
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"

	"github.com/septemberai/orch/brain"
)

// Part is what a journal keeps about a part of an upload.
type Part struct {
	Number int    `json:"part"` // from 1
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	Stored bool   `json:"stored"`
}

// Journal remembers parts beyond a restart of this process.
type Journal interface {
	// Part returns what was noted about a part.
	Part(number int) (Part, bool)
	// Note notes a part before it returns.
	Note(Part) error
}

// ErrDiffers means that a part is not the one that was sent under its number before. Nothing
// of it was sent now.
var ErrDiffers error = &brain.Error{Kind: brain.Internal, Message: "a part is not the one that was sent before"}

// Upload is an io.WriteCloser that stores what is written to it as the parts of an upload,
// one after another; while one is sent, the next one is collected. So it holds two parts in
// memory.
//
// A part is noted before its first byte is sent, and when it is stored. After a restart, a
// part that is noted as stored is not sent again; one that differs from what was noted is
// ErrDiffers (see archive.Key).
type Upload struct {
	ctx     context.Context
	cancel  context.CancelFunc
	client  *Client
	urls    []string
	size    int64
	journal Journal
	sent    atomic.Int64

	present []byte
	spare   chan []byte
	full    chan []byte
	done    chan struct{}
	err     error // of the sender; valid after done
	number  int   // of the sender
	closed  bool
}

// Upload starts an upload of parts with size bytes to urls. The caller calls Close, or Abort.
func (c *Client) Upload(ctx context.Context, urls []string, size int64, j Journal) *Upload {
	ctx, cancel := context.WithCancel(ctx)
	u := &Upload{
		ctx: ctx, cancel: cancel, client: c, urls: urls, size: size, journal: j,
		spare: make(chan []byte, 2), full: make(chan []byte), done: make(chan struct{}),
	}
	u.spare <- nil
	u.spare <- nil
	go u.send()
	return u
}

// Write implements io.Writer. Its error is that of a part written before.
func (u *Upload) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if u.present == nil {
			select {
			case u.present = <-u.spare:
			case <-u.done:
				return 0, u.err
			}
			if u.present == nil {
				u.present = make([]byte, 0, u.size)
			}
		}
		n := copy(u.present[len(u.present):u.size], p)
		u.present, p = u.present[:len(u.present)+n], p[n:]
		if int64(len(u.present)) == u.size {
			if err := u.hand(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

func (u *Upload) hand() error {
	select {
	case u.full <- u.present:
		u.present = nil
		return nil
	case <-u.done:
		return u.err
	}
}

// Close sends the rest, and returns when all parts are stored.
func (u *Upload) Close() error {
	if u.closed {
		return u.err
	}
	u.closed = true
	defer u.cancel()
	if len(u.present) > 0 {
		_ = u.hand()
	}
	close(u.full)
	<-u.done
	return u.err
}

// Abort stops sending. It returns when nothing is sent any more.
func (u *Upload) Abort() {
	u.cancel()
	u.present = nil // it is not a whole part: to note it would make the next start differ
	_ = u.Close()
}

// Parts returns how many parts were stored, after Close.
func (u *Upload) Parts() int { return u.number }

// Sent returns how many bytes are stored so far.
func (u *Upload) Sent() int64 { return u.sent.Load() }

func (u *Upload) send() {
	defer close(u.done)
	for part := range u.full {
		if u.err = u.part(part); u.err != nil {
			return
		}
		u.spare <- part[:0]
	}
}

func (u *Upload) part(data []byte) error {
	if u.ctx.Err() != nil {
		return interrupted(u.ctx)
	}
	if u.number++; u.number > len(u.urls) {
		return brain.Errorf(brain.TooLarge, "the archive needs more than %d parts of %d bytes", len(u.urls), u.size)
	}
	sum := sha256.Sum256(data)
	p := Part{Number: u.number, Bytes: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
	noted, seen := u.journal.Part(u.number)
	if seen && (noted.SHA256 != p.SHA256 || noted.Bytes != p.Bytes) {
		return ErrDiffers
	}
	if !seen {
		if err := u.journal.Note(p); err != nil {
			return brain.Local(err, brain.Internal, "the journal cannot be written")
		}
	}
	if !noted.Stored {
		err := u.client.retry(u.ctx, func() (bool, error) { return false, u.client.put(u.ctx, u.urls[u.number-1], data) })
		if err != nil {
			return err
		}
		p.Stored = true
		if err := u.journal.Note(p); err != nil {
			return brain.Local(err, brain.Internal, "the journal cannot be written")
		}
	}
	u.sent.Add(p.Bytes)
	return nil
}

// put stores data at a URL, once.
func (c *Client) put(ctx context.Context, to string, data []byte) error {
	const what = "storing a part"
	at, err := url.Parse(to)
	if err != nil {
		return &brain.Error{Kind: brain.BadOrder, Message: "a part has no valid URL"}
	}
	if at.Scheme == "file" {
		return putFile(ctx, c, at.Path, data)
	}
	ctx, progress, stop := c.watched(ctx)
	defer stop()
	body := func() io.ReadCloser {
		return io.NopCloser(&throttled{ctx: ctx, client: c, from: bytes.NewReader(data), progress: progress})
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, to, body())
	if err != nil {
		return &brain.Error{Kind: brain.BadOrder, Message: "a part has no valid URL"}
	}
	r.ContentLength = int64(len(data))
	r.GetBody = func() (io.ReadCloser, error) { return body(), nil }
	sum := md5.Sum(data) //nolint:gosec // G401: as above
	r.Header.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
	response, err := c.http.Do(r)
	if err != nil {
		return unanswered(ctx, err, what)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return refused(response, what)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)) // so that the connection is used again
	return nil
}

// throttled reads at most as fast as the client may, and reports progress.
type throttled struct {
	ctx      context.Context
	client   *Client
	from     io.Reader
	progress func()
}

func (t *throttled) Read(p []byte) (int, error) {
	if err := t.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := t.from.Read(p[:min(len(p), burst)])
	if n > 0 {
		// At a low limit a wait is progress, too.
		t.progress()
		if limited := t.client.allow(t.ctx, n); limited != nil {
			return 0, limited
		}
		t.progress()
	}
	return n, err
}

// putFile stores a part as a file: whole, or not at all.
func putFile(ctx context.Context, c *Client, path string, data []byte) error {
	err := brain.Replace(path, func(f *os.File) error {
		_, err := io.Copy(f, &throttled{ctx: ctx, client: c, from: bytes.NewReader(data), progress: func() {}})
		return err
	})
	return fileError(err, "storing a part")
}

// fileError gives an error of the file system, as a store, its kind.
func fileError(err error, what string) error {
	switch kind := brain.KindOf(err); {
	case err == nil:
		return nil
	case kind == brain.NoRoom:
		return brain.Errorf(brain.OverQuota, "%s: %w", what, err)
	case os.IsPermission(err):
		return brain.Errorf(brain.Refused, "%s: %w", what, err)
	default:
		return brain.Local(err, kind, what)
	}
}
