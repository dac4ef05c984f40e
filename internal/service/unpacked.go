package service

import (
	"io"
	"net/http"
	"strings"
)

// unpacked requests uncompressed responses from a client that would request compressed
// ones: decompressing takes 40 KiB, and more time than is saved in transfer.
type unpacked struct{ next http.RoundTripper }

func (u unpacked) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Del("Accept-Encoding")
	resp, err := u.next.RoundTrip(r)
	if err == nil && !strings.HasSuffix(r.URL.Path, "/stream") {
		resp.Body = wholeBody{resp.Body}
	}
	return resp, err
}

// wholeBody reads the rest of a response's body when it is closed, because Nomad's client
// closes it after decoding. The connection can then be used again.
type wholeBody struct{ io.ReadCloser }

func (b wholeBody) Close() error {
	_, _ = io.CopyN(io.Discard, b.ReadCloser, 4<<10) // reading more is not worth it
	return b.ReadCloser.Close()
}
