package boot

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/septemberai/orch/engine"
)

// Authorities returns the authorities of engines' certificates, as they are now; nil: there
// are none.
type Authorities func() *x509.CertPool

// Of returns a Prober of one engine. Over TLS it sends a request only to a process that has
// a certificate with the name of this engine (engine.ServerName) from one of the
// authorities. The address proves nothing: another engine of the node may have it next.
func (p *Prober) Of(jobID string) *Prober {
	one := *p
	one.name = engine.ServerName(jobID)
	if p.authorities == nil { // it cannot be asked over TLS (maySend), and needs no transport for that
		return &one
	}
	return one.over(&http.Transport{DialContext: p.dialer.DialContext, DisableKeepAlives: true, TLSClientConfig: one.trust()})
}

// over returns a copy that uses another transport.
func (p *Prober) over(transport *http.Transport) *Prober {
	one, client := *p, *p.client
	client.Transport = transport
	one.client = &client
	return &one
}

// trust returns how the certificate of the Prober's engine is verified; nil: it cannot be,
// and maySend refuses.
func (p *Prober) trust() *tls.Config {
	roots := p.roots()
	if roots == nil || p.name == "" {
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: p.name}
}

func (p *Prober) roots() *x509.CertPool {
	if p.authorities == nil {
		return nil
	}
	return p.authorities()
}

var errNoAuthority = errors.New("the engine serves TLS, and the service has no authority that its certificate could be verified with: set ORCH_ENGINE_CA_FILE")

// Unproven reports whether an error of a probe shows only that the service cannot verify
// who responds. That may be a fault of its own authorities, or of Vault's, and the engine
// may serve its callers well.
func Unproven(err error) bool {
	var b *Breach
	return errors.Is(err, errNoAuthority) || errors.As(err, &b) && b.Unverified
}

// maySend returns an error if a request over TLS would go to a process whose certificate
// is not verified.
func (p *Prober) maySend(url string) error {
	switch {
	case !strings.HasPrefix(url, engine.TLSScheme):
		return nil
	case p.roots() == nil:
		return errNoAuthority
	case p.name == "":
		return errors.New("a request over TLS to an engine without a name")
	}
	return nil
}

// foreign returns a *Breach if a request failed because the process at the engine's address
// has no certificate of the engine; nil: it failed for another reason.
func (p *Prober) foreign(err error) *Breach {
	var bad *tls.CertificateVerificationError
	switch {
	case errors.As(err, &bad):
		// Go checks the name before the authority.
		var name x509.HostnameError
		return &Breach{
			Said:        fmt.Sprintf("the certificate at its address is not that of %s: %s", p.name, wrong(bad.Err)),
			Certificate: true, Unverified: !errors.As(bad.Err, &name),
		}
	case errors.Is(err, http.ErrSchemeMismatch):
		return &Breach{Said: "it serves plain HTTP instead of TLS with the certificate in ENGINE_TLS_FILE", Certificate: true}
	}
	return nil
}

// wrong says what is wrong with a certificate. The error itself names the engine that it
// belongs to, which can be another product's.
func wrong(err error) string {
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &name):
		return "it has another name"
	case errors.As(err, &unknown):
		return "it is from an unknown authority"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "it has expired, or is not valid yet"
	}
	return "it is not valid for a server"
}
