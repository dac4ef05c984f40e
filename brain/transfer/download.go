package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"

	"github.com/septemberai/orch/brain"
)

// Download reads an object of a known size. When the connection is lost, it continues where
// it was.
type Download struct {
	ctx    context.Context
	client *Client
	url    string
	size   int64
	at     atomic.Int64
	etag   string // of the first response: a later one must be of the same object
	body   io.ReadCloser
	stop   func()
	watch  context.Context
	moved  func()
}

// Download returns a reader of the object at a URL. The caller closes it.
func (c *Client) Download(ctx context.Context, from string, size int64) *Download {
	return &Download{ctx: ctx, client: c, url: from, size: size}
}

// Read implements io.Reader. Besides those of Client, its errors have the kind Corrupt: the
// object is not as long as it should be, or was replaced meanwhile.
func (d *Download) Read(p []byte) (n int, err error) {
	if d.at.Load() >= d.size || len(p) == 0 {
		return 0, io.EOF
	}
	err = d.client.retry(d.ctx, func() (bool, error) {
		before := d.at.Load()
		if d.body == nil {
			if err := d.open(); err != nil {
				return false, err
			}
		}
		n, err = d.body.Read(p[:min(int64(len(p)), burst, d.size-before)])
		d.at.Add(int64(n))
		if n > 0 {
			d.moved()
			return true, d.client.allow(d.ctx, n)
		}
		if err == nil {
			return false, nil
		}
		lost := unanswered(d.watch, err, "fetching the object")
		d.drop()
		if _, isFile := errors.AsType[*os.PathError](err); isFile {
			return false, fileError(err, "fetching the object")
		}
		return false, lost
	})
	return n, err
}

// Received returns how many bytes were read so far.
func (d *Download) Received() int64 { return d.at.Load() }

// Close ends the download.
func (d *Download) Close() error {
	d.drop()
	return nil
}

func (d *Download) drop() {
	if d.body != nil {
		d.stop()
		_ = d.body.Close()
		d.body = nil
	}
}

func (d *Download) open() error {
	const what = "fetching the object"
	from, err := url.Parse(d.url)
	if err != nil {
		return &brain.Error{Kind: brain.BadOrder, Message: "the object has no valid URL"}
	}
	d.watch, d.moved, d.stop = d.client.watched(d.ctx)
	if from.Scheme == "file" {
		return d.openFile(from.Path)
	}
	r, err := http.NewRequestWithContext(d.watch, http.MethodGet, d.url, nil)
	if err != nil {
		d.stop()
		return &brain.Error{Kind: brain.BadOrder, Message: "the object has no valid URL"}
	}
	want := http.StatusOK
	if at := d.at.Load(); at > 0 {
		want = http.StatusPartialContent
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", at))
		r.Header.Set("If-Match", d.etag)
	}
	response, err := d.client.http.Do(r)
	if err != nil {
		defer d.stop()
		return unanswered(d.watch, err, what)
	}
	if response.StatusCode != want {
		defer d.stop()
		defer response.Body.Close()
		if response.StatusCode < 300 {
			return brain.Errorf(brain.Away, "%s: the store responds with %d to a request for a part", what, response.StatusCode)
		}
		return refused(response, what)
	}
	d.body = response.Body
	if response.ContentLength >= 0 && response.ContentLength != d.size-d.at.Load() {
		d.drop()
		return brain.Errorf(brain.Corrupt, "the object has another size than its manifest says")
	}
	if etag := response.Header.Get("ETag"); d.etag == "" {
		d.etag = etag
	} else if etag != d.etag {
		d.drop()
		return brain.Errorf(brain.Corrupt, "the object was replaced while it was fetched")
	}
	return nil
}

func (d *Download) openFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		d.stop()
		return fileError(err, "fetching the object")
	}
	info, err := f.Stat()
	if err == nil && info.Size() != d.size {
		err = brain.Errorf(brain.Corrupt, "the object has another size than its manifest says")
	}
	if err == nil {
		_, err = f.Seek(d.at.Load(), io.SeekStart)
	}
	if err != nil {
		d.stop()
		_ = f.Close()
		return err
	}
	d.body = f
	return nil
}
