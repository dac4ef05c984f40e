package config

import (
	"regexp"

	"github.com/septemberai/orch/internal/reload"
	"github.com/septemberai/orch/jobs"
)

// The values of ORCH_ENGINE_TLS.
const (
	engineTLSOff = "off"
	engineTLSPKI = "pki"
)

// pkiPattern matches the path in Vault at which a role of a PKI mount issues certificates.
var pkiPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*/issue/[A-Za-z0-9_-]+$`)

// checkEngineTLS reports the mistakes in how engines serve TLS. With "off" the authorities
// are for engines that were started before.
func (c *Config) checkEngineTLS(bad func(ok bool, name, format string, args ...any)) {
	if c.EngineCAFile != "" {
		_, err := reload.Pool(c.EngineCAFile)
		bad(err == nil, "ORCH_ENGINE_CA_FILE", "%v", err)
	}
	bad(pkiPattern.MatchString(c.EnginePKIPath), "ORCH_ENGINE_PKI_PATH", "must be MOUNT/issue/ROLE, as in pki-engines/issue/engine")
	if c.EngineTLS != engineTLSPKI {
		return
	}
	bad(c.EngineCAFile != "", "ORCH_ENGINE_CA_FILE", "must be set with ORCH_ENGINE_TLS=pki: the service sends no key to an engine whose certificate it cannot verify")
	bad(jobs.Driver(c.EngineDriver) != jobs.Mock, "ORCH_ENGINE_TLS", "must be off with mock_driver, whose engines have no process")
}

// pkiPath returns the path in Vault that issues engines' certificates; empty: they serve
// plain HTTP.
func (c *Config) pkiPath() string {
	if c.EngineTLS == engineTLSPKI {
		return c.EnginePKIPath
	}
	return ""
}
