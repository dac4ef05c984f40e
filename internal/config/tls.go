package config

import (
	"net"
	"os"

	"github.com/septemberai/orch/internal/reload"
)

// checkTLS reports the mistakes in how the service is to be reached. unknown: whether plain
// HTTP is allowed could not be parsed.
func (c *Config) checkTLS(bad func(ok bool, name, format string, args ...any), unknown bool) {
	switch {
	case c.TLSCertFile == "" && c.TLSKeyFile == "":
		bad(c.AllowHTTP || unknown || !isAddress(c.Addr) || stays(c.Addr), "ORCH_TLS_CERT_FILE",
			"must be set, because other machines can reach ORCH_ADDR (%s) and would send keys over plain HTTP. Set ORCH_TLS_CERT_FILE and ORCH_TLS_KEY_FILE; or a loopback address, such as ORCH_ADDR=127.0.0.1:8000; or ORCH_ALLOW_HTTP=true if something in front of the service ends TLS", c.Addr)
		bad(c.TLSClientCAFile == "", "ORCH_TLS_CLIENT_CA_FILE", "needs ORCH_TLS_CERT_FILE and ORCH_TLS_KEY_FILE")
		return
	case c.TLSCertFile == "":
		bad(false, "ORCH_TLS_KEY_FILE", "needs ORCH_TLS_CERT_FILE")
	case c.TLSKeyFile == "":
		bad(false, "ORCH_TLS_CERT_FILE", "needs ORCH_TLS_KEY_FILE")
	default:
		_, certErr := os.ReadFile(c.TLSCertFile)
		bad(certErr == nil, "ORCH_TLS_CERT_FILE", "cannot be read: %v", certErr)
		_, keyErr := os.ReadFile(c.TLSKeyFile)
		bad(keyErr == nil, "ORCH_TLS_KEY_FILE", "cannot be read: %v", keyErr)
		if certErr == nil && keyErr == nil {
			_, err := reload.Pair(c.TLSCertFile, c.TLSKeyFile)
			bad(err == nil, "ORCH_TLS_CERT_FILE", "and ORCH_TLS_KEY_FILE %v", err)
		}
	}
	if c.TLSClientCAFile != "" {
		_, err := reload.Pool(c.TLSClientCAFile)
		bad(err == nil, "ORCH_TLS_CLIENT_CA_FILE", "%v", err)
	}
}

// stays reports whether what is sent to an address stays on this machine.
func stays(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	return host == "localhost" || isLoopback(addr)
}

// isLoopback reports whether an address is reachable only from this machine.
func isLoopback(s string) bool {
	host, _, err := net.SplitHostPort(s)
	return err == nil && isAddress(s) && net.ParseIP(host).IsLoopback()
}
