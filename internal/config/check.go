package config

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	nomadjobs "github.com/septemberai/orch/nomad-jobs"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/secrets"
)

var (
	namePattern   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	pluginPattern = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*$`)
	mountPattern  = regexp.MustCompile(`^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$`)
	prefixPattern = regexp.MustCompile(`^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*/$`)
)

// check returns every mistake, by variable name. It skips variables that could not be
// parsed, because their mistake has already been reported.
func (c *Config) check(unread map[string]bool) []error {
	var errs []error
	bad := func(ok bool, name, format string, args ...any) {
		if !ok && !unread[name] {
			errs = append(errs, fmt.Errorf("%s: %s", name, fmt.Sprintf(format, args...)))
		}
	}
	oneOf := func(name, v string, words ...string) {
		for _, w := range words {
			if v == w {
				return
			}
		}
		bad(false, name, "must be one of %s", strings.Join(words, ", "))
	}
	atLeast := func(name string, v, min int) { bad(v >= min, name, "is %d; it must be at least %d", v, min) }

	bad(isAddress(c.Addr), "ORCH_ADDR", "must be host:port or :port, with a port from 0 to 65535")
	c.checkTLS(bad, unread["ORCH_ALLOW_HTTP"])
	bad(c.OpsAddr == opsOff || isAddress(c.OpsAddr), "ORCH_OPS_ADDR", "must be host:port or :port, with a port from 0 to 65535, or off")
	bad(c.AllowHTTP || unread["ORCH_ALLOW_HTTP"] || c.OpsAddr == opsOff || !isAddress(c.OpsAddr) || stays(c.OpsAddr), "ORCH_OPS_ADDR",
		"must be a loopback address, such as 127.0.0.1:8001: it serves plain HTTP, and other machines could reach %s; or set ORCH_ALLOW_HTTP=true on a private network", c.OpsAddr)
	bad(c.OpsAddr != opsOff || !c.AdminOpsOnly, "ORCH_ADMIN_ON_OPS_ONLY", "needs a listener for operators, and ORCH_OPS_ADDR is off")
	c.checkAdminKeys(bad)
	bad(strings.HasPrefix(c.DatabaseURL, "sqlite://") || strings.HasPrefix(c.DatabaseURL, "postgres://") || strings.HasPrefix(c.DatabaseURL, "postgresql://"),
		"ORCH_DATABASE_URL", "must begin with sqlite:// or postgres://")
	atLeast("ORCH_MAX_CONNECTIONS", c.MaxConns, 1)
	atLeast("ORCH_MAX_REQUESTS", c.MaxRequests, 1)
	atLeast("ORCH_WRONG_KEYS_PER_MINUTE", c.WrongKeys, 0)
	atLeast("ORCH_DRAIN_DELAY_S", c.DrainDelayS, 0)
	atLeast("ORCH_AUDIT_RETENTION_DAYS", c.AuditRetentionDays, 1)
	bad(hclog.LevelFromString(c.LogLevel) != hclog.NoLevel, "ORCH_LOG_LEVEL", "must be one of trace, debug, info, warn, error")

	oneOf("ORCH_ENGINE_DRIVER", c.EngineDriver, string(jobs.Docker), string(jobs.RawExec), string(jobs.Mock))
	oneOf("ORCH_ENGINE_KEY_RELOAD", c.KeyReload, "restart", "signal")
	err := engine.CheckKeyProofPath(c.KeyProofPath)
	bad(err == nil, "ORCH_ENGINE_KEY_PROOF_PATH", "%v", err)
	oneOf("ORCH_ENGINE_TLS", c.EngineTLS, engineTLSOff, engineTLSPKI)
	c.checkEngineTLS(bad)
	oneOf("ORCH_JOB_USER", c.JobUser, jobs.UserHashed, jobs.UserPlain, jobs.UserNone)
	bad(c.ConsulUIURL == "" || isWebAddress(c.ConsulUIURL), "ORCH_CONSUL_UI_URL", "must be an address such as https://consul.example.com/ui/dc1")
	oneOf("ORCH_ENGINE_LOGS", c.EngineLogs, "auto", "nomad", "driver")
	bad(c.EngineImage != "", "ORCH_ENGINE_IMAGE", "must be set")
	if c.EngineImage != "" {
		bad(scheduler.CheckImage(jobs.Driver(c.EngineDriver), c.EngineImage) == nil, "ORCH_ENGINE_IMAGE", "is not an image; with raw_exec it must be the name of an executable, without a path")
	}
	if jobs.Driver(c.EngineDriver) == jobs.RawExec {
		bad(isJobPath(c.EngineBinDir), "ORCH_ENGINE_BIN_DIR", "must be an absolute path with raw_exec, "+plainPath)
	}
	bad(jobs.Driver(c.EngineDriver) != jobs.Mock || c.EngineJobFile != "", "ORCH_ENGINE_JOB_FILE", "must be set with mock_driver: the built-in job file is for other drivers")
	bad(c.CatalogPath == "" || isJobPath(c.CatalogPath), "ORCH_CATALOG_PATH", "must be an absolute path, "+plainPath)
	for i, glob := range c.RestartSubsystems {
		_, err := path.Match(glob, "")
		bad(err == nil && glob != "", "ORCH_RESTART_SUBSYSTEMS", "entry %d is not a glob pattern", i+1)
	}
	for i, name := range c.Passthrough {
		// The entry is not in the error: it may be NAME=value, and the value a key.
		bad(namePattern.MatchString(name), "ORCH_ENGINE_ENV_PASSTHROUGH", "entry %d is not the name of a variable", i+1)
		bad(!reserved(name), "ORCH_ENGINE_ENV_PASSTHROUGH", "entry %d is a variable that Nomad or the service itself sets", i+1)
	}
	if err := secrets.CheckEnv(c.providerKeys()); err != nil {
		errs = append(errs, err)
	}
	bad(prefixPattern.MatchString(c.ConsulPrefix), "ORCH_CONSUL_PREFIX", "must be a path that ends in a slash, as in orch/")
	bad(mountPattern.MatchString(c.VaultMount), "ORCH_VAULT_MOUNT", "must be a mount path without slashes at its ends")
	bad(c.NomadNamespace != "" && c.NomadNamespace != "*", "ORCH_NOMAD_NAMESPACE", "must name one namespace")

	c.jobFile = nomadjobs.Engine
	if c.EngineJobFile != "" {
		b, err := os.ReadFile(c.EngineJobFile)
		bad(err == nil, "ORCH_ENGINE_JOB_FILE", "cannot be read: %v", err)
		c.jobFile = string(b)
	}

	c.checkSnapshots(bad)
	oneOf("ORCH_ON_DRAIN", c.OnDrain, "wait", drainMove)
	atLeast("ORCH_SNAPSHOTS_PER_NODE", c.SnapshotsPerNode, 1)
	atLeast("ORCH_EVACUATE_PARALLEL", c.EvacuateParallel, 1)
	atLeast("ORCH_SNAPSHOT_BYTES_PER_S", c.SnapshotBytesPerS, 0)
	bad(c.DrillsPerDay >= 0 && c.DrillsPerDay <= 1000, "ORCH_DRILLS_PER_DAY", "must be from 0 to 1000")
	bad(pluginPattern.MatchString(c.VolumePlugin), "ORCH_VOLUME_PLUGIN", "must be the name of a file, without a path")
	atLeast("ORCH_ENGINE_CPU_MHZ", c.EngineCPUMHz, 1)
	atLeast("ORCH_ENGINE_MEMORY_MB", c.EngineMemoryMB, 10)
	atLeast("ORCH_VOLUME_POOL", c.VolumePool, 0)
	atLeast("ORCH_WARM_POOL", c.WarmPool, 0)
	atLeast("ORCH_BOOT_TIMEOUT_S", c.BootTimeoutS, 1)
	oneOf("ORCH_BOOT_DETECTION", c.BootDetection, string(boot.ByProbe), string(boot.ByConsul), string(boot.ByEither))
	if boot.Detection(c.BootDetection) == boot.ByConsul {
		bad(unread["ORCH_BOOT_TIMEOUT_S"] || unread["ORCH_HEALTH_CHECK_INTERVAL_S"] || unread["ORCH_HEALTH_CHECK_TIMEOUT_S"] || c.BootTimeoutS > c.HealthCheckIntervalS+c.HealthCheckTimeoutS, "ORCH_BOOT_TIMEOUT_S",
			"must be more than ORCH_HEALTH_CHECK_INTERVAL_S and ORCH_HEALTH_CHECK_TIMEOUT_S together with ORCH_BOOT_DETECTION=consul: a check may begin that late")
		bad(c.KeyReload != "signal", "ORCH_ENGINE_KEY_RELOAD", "must be restart with ORCH_BOOT_DETECTION=consul: after a signal, only the engine's own response shows which key it accepts")
	}
	atLeast("ORCH_IDLE_TIMEOUT_S", c.IdleTimeoutS, 0)
	atLeast("ORCH_HEALTH_CHECK_INTERVAL_S", c.HealthCheckIntervalS, 1)
	atLeast("ORCH_HEALTH_CHECK_TIMEOUT_S", c.HealthCheckTimeoutS, 1) // Nomad's minimum
	atLeast("ORCH_HEALTH_MAX_FAILURES", c.HealthMaxFailures, 1)
	atLeast("ORCH_RESTART_BACKOFF_BASE_S", c.RestartBackoffBaseS, 1)
	bad(unread["ORCH_RESTART_BACKOFF_BASE_S"] || c.RestartBackoffMaxS >= c.RestartBackoffBaseS, "ORCH_RESTART_BACKOFF_MAX_S", "must be at least ORCH_RESTART_BACKOFF_BASE_S")
	atLeast("ORCH_RESTART_MAX_ATTEMPTS", c.RestartMaxAttempts, 0)
	atLeast("ORCH_RECONCILE_INTERVAL_S", c.ReconcileIntervalS, 1)
	atLeast("ORCH_ORPHAN_GRACE_S", c.OrphanGraceS, 1)
	return errs
}

// contractVariables are the variables of the engine contract (docs/tutorial-engine.md). A provider
// key of the same name would replace one, because Nomad merges the files of all templates.
var contractVariables = []string{"ENGINE_KEY_HASH", "ENGINE_KEY_HASH_FILE", "ENGINE_KEY_CHECKSUM", "ENGINE_TLS_FILE", "SQLITE_DB_PATH", "CATALOG_DIR", "PORT"}

func reserved(name string) bool {
	return slices.Contains(contractVariables, name) || strings.HasPrefix(name, "NOMAD_")
}

// providerKeys returns the variables named in Passthrough that are set and may be passed
// on.
func (c *Config) providerKeys() map[string]string {
	keys := map[string]string{}
	for _, name := range c.Passthrough {
		if value, set := c.lookup[name]; set && namePattern.MatchString(name) {
			keys[name] = value
		}
	}
	return keys
}

// plainPath describes what isJobPath accepts.
const plainPath = "without control characters, and without ${, which Nomad would replace"

// isJobPath reports whether a path can be used unchanged in a job.
func isJobPath(s string) bool {
	return filepath.IsAbs(s) && utf8.ValidString(s) && !strings.Contains(s, "${") && !strings.ContainsFunc(s, unicode.IsControl)
}

func isAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// opsOff is the value of ORCH_OPS_ADDR without a listener. An empty value is the default, as
// of every variable.
const opsOff = "off"

// isWebAddress reports whether s is the address of a page that a browser opens, without
// credentials.
func isWebAddress(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
}
