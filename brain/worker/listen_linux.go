package worker

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/septemberai/orch/brain"
)

// whenAsked waits for POST /copy with the order's token as bearer, and then runs work. The
// response has the result, once it is there: 200 with copy_ms, or 500 with the error. Whoever
// asks a second time, because a response was lost, gets the same one, as long as the upload
// has not begun.
//
// Only whoever asked first is known to keep the engine frozen. If that request ends before
// work does, work is stopped, and its result is worth nothing: the error is Interrupted.
func whenAsked(ctx context.Context, o *brain.SnapshotOrder, r *reporter, work func(context.Context) (copied, error)) (c copied, err error) {
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return c, brain.Errorf(brain.Internal, "cannot listen: %w", err)
	}
	var once sync.Once
	asked, done := make(chan context.Context, 1), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /copy", func(w http.ResponseWriter, q *http.Request) {
		if subtle.ConstantTimeCompare([]byte(q.Header.Get("Authorization")), []byte("Bearer "+o.Token)) != 1 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		// The server notices that a client is gone only after it has read the body.
		_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, q.Body, 16<<10))
		once.Do(func() { asked <- q.Context() })
		select {
		case <-done:
		case <-q.Context().Done():
			return
		}
		response := any(c)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			response = brain.TextOf(err)
		}
		_ = json.NewEncoder(w).Encode(response)
	})
	s := http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	defer func() {
		// The response must be sent before this process goes on, or ends.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx)
		_ = s.Close()
		serving.Wait()
	}()
	r.send(brain.Report{Phase: "waiting", Listen: l.Addr().String()})
	timer := time.NewTimer(o.Wait())
	defer timer.Stop()
	select {
	case asker := <-asked:
		c, err = whileAsked(ctx, asker, work)
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = brain.Errorf(brain.Interrupted, "nobody asked for the copy within %s", o.Wait())
	}
	close(done)
	return c, err
}

// whileAsked runs work, which must end before asker does.
func whileAsked(ctx, asker context.Context, work func(context.Context) (copied, error)) (copied, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(asker, cancel)
	c, err := work(ctx)
	if !stop() {
		// The engine may have continued during work, so an error of work says nothing either.
		return copied{}, brain.Errorf(brain.Interrupted, "whoever asked for the copy did not wait for its end")
	}
	return c, err
}
