package reload

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"
)

// Pair reads a certificate and its key. Both files are in PEM format, the certificate's
// with its chain.
func Pair(certFile, keyFile string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return pair, fmt.Errorf("cannot be used together: %w", err)
	}
	return pair, nil
}

// Replaces returns an error if a certificate must not replace another one (nil: there is
// none): it is not valid at that time, and the other one is.
func Replaces(old, next *x509.Certificate, now time.Time) error {
	valid := func(c *x509.Certificate) bool { return !now.Before(c.NotBefore) && !now.After(c.NotAfter) }
	if old == nil || valid(next) || !valid(old) {
		return nil
	}
	return fmt.Errorf("the new certificate is valid from %s to %s only, so the one of before is kept", next.NotBefore.UTC().Format(time.RFC3339), next.NotAfter.UTC().Format(time.RFC3339))
}

// Pool reads the certificates of authorities from a file in PEM format.
func Pool(file string) (*x509.CertPool, error) {
	b, err := Authorities(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	return pool, nil
}

// Authorities reads a file in PEM format that has certificates of authorities, for somebody
// else who uses them.
func Authorities(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s contains no certificate in PEM format", file)
	}
	return b, nil
}

// Token reads a token, without blanks and line ends around it. An empty file is an error.
func Token(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return token, nil
}
