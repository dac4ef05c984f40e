package worker

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/septemberai/orch/brain"
)

// whenAsked waits for POST /copy with the order's token as bearer, and then runs work. The
// answer has the result, once it is there: 200 with copy_ms, or 500 with the error. Whoever
// asks a second time, because an answer was lost, gets the same one, as long as the upload
// has not begun.
func whenAsked(ctx context.Context, o *brain.SnapshotOrder, r *reporter, work func() (copied, error)) (c copied, err error) {
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return c, brain.Errorf(brain.Internal, "cannot listen: %w", err)
	}
	var once sync.Once
	asked, done := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /copy", func(w http.ResponseWriter, q *http.Request) {
		if subtle.ConstantTimeCompare([]byte(q.Header.Get("Authorization")), []byte("Bearer "+o.Token)) != 1 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		once.Do(func() { close(asked) })
		select {
		case <-done:
		case <-q.Context().Done():
			return
		}
		answer := any(c)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			answer = brain.TextOf(err)
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	s := http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	defer func() {
		// The answer must be sent before this process goes on, or ends.
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
	case <-asked:
		c, err = work()
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = brain.Errorf(brain.Interrupted, "nobody asked for the copy within %s", o.Wait())
	}
	close(done)
	return c, err
}
