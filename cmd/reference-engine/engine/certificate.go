package engine

import (
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
)

// certificate is the certificate in a file, which Nomad replaces before it expires. Nothing
// signals that: the file is looked at for each new connection.
type certificate struct {
	file string
	log  *slog.Logger

	mu     sync.Mutex
	read   os.FileInfo // the file as it was read
	loaded *tls.Certificate
}

// newCertificate reads the certificate for the first time.
func newCertificate(file string, log *slog.Logger) (*certificate, error) {
	c := &certificate{file: file, log: log}
	return c, c.reload()
}

// config returns the TLS configuration of the listener. Clients that offer HTTP/2 get
// HTTP/1.1.
func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: c.current}
}

// current returns the certificate that is in the file now. If the file cannot be used, the
// previous certificate stays.
func (c *certificate) current(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.reload(); err != nil {
		c.log.Error("cannot read the certificate, keeping the old one", "err", err)
	}
	return c.loaded, nil
}

// reload reads the file if it is another one than before, or has changed.
func (c *certificate) reload() error {
	now, err := os.Stat(c.file)
	if err != nil {
		return err
	}
	if c.read != nil && os.SameFile(c.read, now) && c.read.ModTime().Equal(now.ModTime()) && c.read.Size() == now.Size() {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.file, c.file)
	if err != nil {
		return err
	}
	c.log.Info("certificate read", "names", pair.Leaf.DNSNames, "until", pair.Leaf.NotAfter)
	c.read, c.loaded = now, &pair
	return nil
}
