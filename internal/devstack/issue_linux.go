package devstack

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Authority issues certificates for tests of what uses them.
type Authority struct{ authority }

// NewAuthority creates an authority, and writes its certificate to dir/ca.pem.
func NewAuthority(dir string) (*Authority, error) {
	a, err := newAuthority(dir)
	if err != nil {
		return nil, err
	}
	return &Authority{*a}, nil
}

// Authority returns the authority of a locked stack, whose certificates the agents accept.
// It writes to dir.
func (s *Stack) Authority(dir string) *Authority {
	a := &Authority{*s.lock.ca}
	a.dir = dir
	return a
}

// CAFile returns the file with the certificate of an authority from NewAuthority.
func (a *Authority) CAFile() string { return filepath.Join(a.dir, "ca.pem") }

// Issue writes a certificate for servers and clients to NAME.pem and its key to
// NAME-key.pem, and replaces what is there. hosts are host names and IP addresses.
func (a *Authority) Issue(name string, life time.Duration, hosts ...string) (cert, key string, err error) {
	of := a.authority
	of.life = life
	files, err := of.issue(name, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, hosts...)
	return files.Cert, files.Key, err
}

// RenewCertificates gives each agent of a locked stack a certificate of this life for the
// same names, and makes it read the certificate.
func (s *Stack) RenewCertificates(life time.Duration) error {
	of := *s.lock.ca
	of.life = life
	for c, a := range s.agents {
		text, err := os.ReadFile(filepath.Join(of.dir, string(c)+".pem"))
		if err != nil {
			return err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return fmt.Errorf("the certificate of %s is not in PEM format", c)
		}
		old, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("certificate of %s: %w", c, err)
		}
		hosts := old.DNSNames
		for _, ip := range old.IPAddresses {
			hosts = append(hosts, ip.String())
		}
		if _, err := of.issue(string(c), old.ExtKeyUsage, hosts...); err != nil {
			return err
		}
		if err := a.signal(syscall.SIGHUP); err != nil {
			return err
		}
	}
	return nil
}
