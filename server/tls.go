package server

import (
	"bytes"
	"crypto/tls"
	"io"
	"log"
	"net"

	"github.com/hashicorp/go-hclog"
)

// UseTLS makes Serve accept only TLS, with HTTP/2 or HTTP/1.1. Its configuration may change
// its certificates at any time. Call it before Serve.
func (s *Server) UseTLS(c *tls.Config) { s.http.TLSConfig, s.https = c, c != nil }

// TLS reports whether the server serves HTTPS.
func (s *Server) TLS() bool { return s.https }

// accept accepts connections until the listener is closed.
func (s *Server) accept() error {
	if s.https {
		return s.http.ServeTLS(s.listener, "", "")
	}
	return s.http.Serve(s.listener)
}

// limitedOf returns the connection that the listener counts, below TLS.
func limitedOf(conn net.Conn) (*limitedConn, bool) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, ok := conn.(*limitedConn)
	return c, ok
}

// errorLog returns the log of net/http. Everybody can cause failed handshakes, and checks of
// the port alone do, so they are only logged at level debug.
func errorLog(to hclog.Logger) *log.Logger {
	return log.New(&handshakes{to, to.StandardWriter(&hclog.StandardLoggerOptions{InferLevels: true})}, "", 0)
}

type handshakes struct {
	log  hclog.Logger
	rest io.Writer
}

func (h *handshakes) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("TLS handshake error")) {
		h.log.Debug("a client's TLS handshake failed", "error", string(bytes.TrimSpace(b)))
		return len(b), nil
	}
	return h.rest.Write(b)
}
