package audit

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// deaf is a proxy to a database that can drop responses.
type deaf struct {
	net.Listener
	to   string
	lost atomic.Bool
	work sync.WaitGroup
}

func (d *deaf) serve() {
	for {
		near, err := d.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", d.to)
		if err != nil {
			_ = near.Close()
			continue
		}
		d.work.Go(func() {
			_, _ = io.Copy(far, near)
			_ = far.Close()
		})
		d.work.Go(func() {
			_, _ = io.Copy(ear{d, near}, far)
			_ = near.Close()
		})
	}
}

type ear struct {
	d *deaf
	net.Conn
}

func (e ear) Write(p []byte) (int, error) {
	if e.d.lost.Load() {
		return len(p), nil
	}
	return e.Conn.Write(p)
}

// TestBeginUnanswered drops the response to Begin: the change is refused, and the row shows
// that when the database can be reached again.
func TestBeginUnanswered(t *testing.T) {
	at, err := url.Parse(emptyDatabase(t, postgres(t)))
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	way := &deaf{Listener: l, to: at.Host}
	way.work.Go(way.serve)
	t.Cleanup(func() { _ = l.Close(); way.work.Wait() })
	at.Host = l.Addr().String()
	log := open(t, at.String())
	running, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { log.Run(running) })
	t.Cleanup(func() { stop(); work.Wait() })

	var before int64
	eventually(t, "the row of a refused change shows that", func() error {
		// The first INSERT of a connection is prepared before it is sent; if the response
		// to that is dropped, there is no row.
		var err error
		before, err = log.Begin(t.Context(), Entry{ProductID: "p", UserID: "u", Action: ActionStop, RequestID: "answered"})
		must(t, err)
		way.lost.Store(true)
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err = log.Begin(short, Entry{ProductID: "p", UserID: "u", Action: ActionStop, RequestID: "unanswered"})
		wantErr(t, err, ErrUnavailable)
		way.lost.Store(false)
		log.settle(t.Context())
		outcomes := map[string]string{}
		for _, e := range list(t, log, Query{ProductID: "p"}) {
			outcomes[e.RequestID] = e.Outcome
		}
		if len(outcomes) != 2 || outcomes["answered"] != OutcomeInterrupted || outcomes["unanswered"] != OutcomeUnavailable {
			return fmt.Errorf("rows %v", outcomes)
		}
		return nil
	})
	must(t, log.Complete(t.Context(), before, Completion{}))
}
