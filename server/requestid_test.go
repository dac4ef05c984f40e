package server

import (
	"bufio"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestRequestID(t *testing.T) {
	s := newCutOff(t)
	for _, id := range []string{"a", "req-1", "01JABC.x:y/z+=_", strings.Repeat("x", 128)} {
		t.Run("OK "+id[:min(len(id), 20)], func(t *testing.T) {
			w := s.send("GET", "/engines/u", "", "X-Request-Id", id)
			checkForm(t, w)
			if got := w.Header().Get("X-Request-Id"); got != id {
				t.Errorf("got %q, want the caller's", got)
			}
			if log := s.logs.String(); !strings.Contains(log, "request_id="+id) && !strings.Contains(log, `request_id="`+id+`"`) {
				t.Error("the log does not name it")
			}
		})
	}
	made := regexp.MustCompile(`\A[a-z2-7]{26}\z`)
	seen := map[string]bool{}
	for name, id := range map[string]string{
		"none": "", "space": "a b", "line break": "a\nb", "trailing line break": "a\n", "quote": `a"b`, "not ASCII": "é", "zero byte": "a\x00", "markup": "<a>", "too long": strings.Repeat("x", 129),
	} {
		t.Run("replaced "+name, func(t *testing.T) {
			w := s.send("GET", "/live", "", "X-Request-Id", id)
			checkForm(t, w)
			got := w.Header().Get("X-Request-Id")
			if !made.MatchString(got) || seen[got] {
				t.Errorf("got %q, want a new one", got)
			}
			seen[got] = true
		})
	}
}

// TestEveryAnswerOnTheWire includes responses that net/http would send by itself.
func TestEveryAnswerOnTheWire(t *testing.T) {
	s := newCutOff(t)
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	for _, line := range []string{"OPTIONS * HTTP/1.1", "CONNECT a:1 HTTP/1.1", "GET http://a HTTP/1.1", "GET / HTTP/1.0"} {
		t.Run(line, func(t *testing.T) {
			conn, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
			if _, err := conn.Write([]byte(line + "\r\nHost: a\r\nConnection: close\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode < 400 || resp.StatusCode >= 500 || !sane.MatchString(resp.Header.Get("X-Request-Id")) {
				t.Errorf("%d with X-Request-Id %q", resp.StatusCode, resp.Header.Get("X-Request-Id"))
			}
		})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
