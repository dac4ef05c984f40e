// Package config is the service's configuration: one struct, filled from the
// environment, with its defaults and its checks in one place.
package config

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caarlos0/env/v11"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	nomadjobs "github.com/septemberai/orch/nomad-jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/secrets"
)

// Config is everything that an operator decides. The addresses and tokens of
// Nomad, Consul and Vault are read by their own clients from their own standard
// variables.
type Config struct {
	Addr     string `section:"The service" env:"ORCH_ADDR" envDefault:":8000" desc:"address to listen on"`
	AdminKey string `env:"ORCH_ADMIN_KEY" json:"-" desc:"key of the admin endpoints, 16 characters or more (this or ORCH_ADMIN_KEY_FILE is required)"`
	// AdminKeyFile is read at the start and again on SIGHUP.
	AdminKeyFile string `env:"ORCH_ADMIN_KEY_FILE" desc:"file with the admin key, instead of ORCH_ADMIN_KEY; read again on SIGHUP"`
	LogLevel     string `env:"ORCH_LOG_LEVEL" envDefault:"info" desc:"trace, debug, info, warn or error"`
	LogJSON      bool   `env:"ORCH_LOG_JSON" envDefault:"false" desc:"log lines as JSON"`
	PprofAddr    string `env:"ORCH_PPROF_ADDR" desc:"loopback address to serve Go's profiles of the service on, below /debug/pprof/ (127.0.0.1:6060); default: nowhere"`

	EngineImage    string   `section:"Engines" env:"ORCH_ENGINE_IMAGE" desc:"image of an engine whose product names none (required); with raw_exec a file name in ORCH_ENGINE_BIN_DIR"`
	EngineDriver   string   `env:"ORCH_ENGINE_DRIVER" envDefault:"docker" desc:"Nomad task driver: docker or raw_exec; mock_driver, which only development builds of Nomad have, runs nothing and is for measurements of scale"`
	EngineBinDir   string   `env:"ORCH_ENGINE_BIN_DIR" desc:"directory of engine executables on every node (required with raw_exec)"`
	PinImages      bool     `env:"ORCH_ENGINE_PIN_IMAGES" envDefault:"true" desc:"with docker, an image is resolved to a digest when an engine is made, and that digest is started from then on; false: its tag is started each time, whatever that means on the engine's node"`
	EngineJobFile  string   `env:"ORCH_ENGINE_JOB_FILE" desc:"Nomad job file of an engine; default: the one built in"`
	EngineCPUMHz   int      `env:"ORCH_ENGINE_CPU_MHZ" envDefault:"100" desc:"CPU of an engine whose policy says nothing, in MHz"`
	EngineMemoryMB int      `env:"ORCH_ENGINE_MEMORY_MB" envDefault:"256" desc:"memory of an engine whose policy says nothing, in MiB"`
	KeyReload      string   `env:"ORCH_ENGINE_KEY_RELOAD" envDefault:"restart" desc:"how an engine gets a new key hash: restart of its process, or signal (SIGHUP, then it reads ENGINE_KEY_HASH_FILE)"`
	KeyProofPath   string   `env:"ORCH_ENGINE_KEY_PROOF_PATH" envDefault:"/.orch/key-proof" desc:"path on which an engine proves its key: it must answer 401 or 403 there without a key and with a wrong one, and anything else with its own; any path that needs a key will do. A product's policy can name another (key_proof_path)"`
	EngineLogs     string   `env:"ORCH_ENGINE_LOGS" envDefault:"auto" desc:"who keeps what engines print: nomad (its UI shows it; costs about 30 MiB of helper processes per engine and some of its boot), driver (docker logs; with raw_exec nobody), or auto: nomad with raw_exec, driver with docker"`
	Passthrough    []string `env:"ORCH_ENGINE_ENV_PASSTHROUGH" desc:"comma-separated variables of the service that engines get, by way of Vault (LLM_API_KEY,OPENAI_API_KEY); each valid UTF-8, its line in an env file 65535 bytes at most and all together 256 KiB; none that Nomad or the service sets itself (NOMAD_*, PORT, ENGINE_KEY_HASH, ENGINE_KEY_HASH_FILE, SQLITE_DB_PATH, CATALOG_DIR)"`
	CatalogPath    string   `env:"ORCH_CATALOG_PATH" desc:"shared catalog on every node, read-only in engines"`
	VolumePlugin   string   `env:"ORCH_VOLUME_PLUGIN" envDefault:"mkdir" desc:"plugin of Nomad's that makes the volumes of engines: mkdir, which is built in, or the name of orch-quota's file in the host_volume_plugin_dir of the nodes, which can limit them (a policy's brain_mb); nodes without it get no engines"`
	VolumePool     int      `env:"ORCH_VOLUME_POOL" envDefault:"8" desc:"ready, empty host volumes kept per node; filled up when half are left, and one node after another when none was taken of any for 5 s: the next waits 0.3 s for each engine on the one before. A quarter of the engines that a node is to hold is a good size"`
	WarmPool       int      `env:"ORCH_WARM_POOL" envDefault:"0" desc:"engines of the default image that run and wait for a user; a product's policy can add its own (warm_pool)"`

	ConsulPrefix   string `section:"Where it keeps things" env:"ORCH_CONSUL_PREFIX" envDefault:"orch/" desc:"prefix of all keys in Consul KV"`
	VaultMount     string `env:"ORCH_VAULT_MOUNT" envDefault:"orch" desc:"mount of the KV v2 engine in Vault"`
	NomadNamespace string `env:"ORCH_NOMAD_NAMESPACE" envDefault:"default" desc:"Nomad namespace of engines"`

	DatabaseURL        string `section:"Audit log" env:"ORCH_DATABASE_URL" envDefault:"sqlite://orch-data/audit.db" json:"-" desc:"audit log: sqlite://FILE for exactly one replica, or postgres://HOST/DATABASE for any number. A FILE that does not begin with a slash is relative to the working directory: the default suits a trial in a checkout, which needs no rights elsewhere; for a service name its own, as in sqlite:///var/lib/orch/audit.db (at the start there is a warning when the working directory is /)"`
	AuditRetentionDays int    `env:"ORCH_AUDIT_RETENTION_DAYS" envDefault:"90" desc:"how long audit rows are kept, in days"`

	BootTimeoutS         int      `section:"Health and restarts" env:"ORCH_BOOT_TIMEOUT_S" envDefault:"60" desc:"boot deadline, in seconds"`
	IdleTimeoutS         int      `env:"ORCH_IDLE_TIMEOUT_S" envDefault:"900" desc:"after how long without an admit an engine is put to sleep, in seconds, where its product's policy says nothing; 0: never"`
	HealthCheckIntervalS int      `env:"ORCH_HEALTH_CHECK_INTERVAL_S" envDefault:"30" desc:"interval of the Consul check of a running engine, in seconds"`
	HealthCheckTimeoutS  int      `env:"ORCH_HEALTH_CHECK_TIMEOUT_S" envDefault:"10" desc:"one health probe, in seconds"`
	HealthMaxFailures    int      `env:"ORCH_HEALTH_MAX_FAILURES" envDefault:"3" desc:"consecutive failures before an engine is failed"`
	RestartBackoffBaseS  int      `env:"ORCH_RESTART_BACKOFF_BASE_S" envDefault:"5" desc:"first wait before an auto-restart, in seconds; doubles"`
	RestartBackoffMaxS   int      `env:"ORCH_RESTART_BACKOFF_MAX_S" envDefault:"300" desc:"longest wait before an auto-restart, in seconds"`
	RestartMaxAttempts   int      `env:"ORCH_RESTART_MAX_ATTEMPTS" envDefault:"8" desc:"auto-restarts before the service gives up"`
	RestartSubsystems    []string `env:"ORCH_RESTART_SUBSYSTEMS" envDefault:"brain" desc:"subsystems in an engine's /health that a restart may mend, as comma-separated names or globs; an engine that answers and names none of them among those that fail stays running (upstream_down) and is not restarted until it heals or stops answering; *: it is restarted whatever fails"`

	ReconcileIntervalS int `env:"ORCH_RECONCILE_INTERVAL_S" envDefault:"60" desc:"time between two full passes of reconcile, in seconds"`
	OrphanGraceS       int `env:"ORCH_ORPHAN_GRACE_S" envDefault:"600" desc:"how long a job, volume, variable or key without a row is left alone before it is removed, in seconds"`

	// jobFile is the text of the engine's job file.
	jobFile string
	// lookup finds the variables named in Passthrough.
	lookup map[string]string
}

// Load fills a Config from variables in the form NAME=value, as os.Environ
// gives them. The error names every variable that is wrong.
func Load(environ []string) (*Config, error) {
	vars := env.ToMap(environ)
	c := &Config{lookup: vars}
	var errs []error
	unread := map[string]bool{}
	if err := env.ParseWithOptions(c, env.Options{Environment: vars}); err != nil {
		errs = append(errs, named(err, unread)...)
	}
	errs = append(errs, c.check(unread)...)
	return c, errors.Join(errs...)
}

var typeNames = map[reflect.Kind]string{reflect.Int: "a whole number", reflect.Bool: "true or false"}

// named turns the parser's errors, which name struct fields, into ones that
// name variables, and notes these in unread. The values stay out of them: one may
// be a secret.
func named(err error, unread map[string]bool) []error {
	var all env.AggregateError
	if !errors.As(err, &all) {
		return []error{err}
	}
	var out []error
	for _, e := range all.Errors {
		var parse env.ParseError
		if !errors.As(e, &parse) {
			out = append(out, e)
			continue
		}
		field, _ := reflect.TypeFor[Config]().FieldByName(parse.Name)
		unread[field.Tag.Get("env")] = true
		out = append(out, fmt.Errorf("%s: must be %s", field.Tag.Get("env"), typeNames[parse.Type.Kind()]))
	}
	return out
}

var (
	namePattern   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	pluginPattern = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*$`)
	mountPattern  = regexp.MustCompile(`^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$`)
	prefixPattern = regexp.MustCompile(`^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*/$`)
)

// minAdminKey is how many characters an admin key has at least.
const minAdminKey = 16

// check returns every mistake, by variable name; of those that could not be read
// that is said already.
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
	atLeast := func(name string, v, min int) { bad(v >= min, name, "is %d; it must be %d or more", v, min) }

	bad(isAddress(c.Addr), "ORCH_ADDR", "must be host:port or :port, with a port from 0 to 65535")
	bad(c.PprofAddr == "" || isLoopback(c.PprofAddr), "ORCH_PPROF_ADDR", "must be 127.0.0.1:port or [::1]:port, with a port from 0 to 65535: whoever reaches it can slow the service down")
	bad(c.AdminKey == "" || c.AdminKeyFile == "", "ORCH_ADMIN_KEY_FILE", "is set beside ORCH_ADMIN_KEY; set one of the two")
	if c.AdminKey == "" && c.AdminKeyFile != "" {
		key, err := ReadAdminKey(c.AdminKeyFile)
		bad(err == nil, "ORCH_ADMIN_KEY_FILE", "%v", err)
		c.AdminKey = key
	} else {
		bad(len([]rune(c.AdminKey)) >= minAdminKey, "ORCH_ADMIN_KEY", "must be set, to %d characters or more", minAdminKey)
	}
	bad(strings.HasPrefix(c.DatabaseURL, "sqlite://") || strings.HasPrefix(c.DatabaseURL, "postgres://") || strings.HasPrefix(c.DatabaseURL, "postgresql://"),
		"ORCH_DATABASE_URL", "must begin with sqlite:// or postgres://")
	atLeast("ORCH_AUDIT_RETENTION_DAYS", c.AuditRetentionDays, 1)
	bad(hclog.LevelFromString(c.LogLevel) != hclog.NoLevel, "ORCH_LOG_LEVEL", "must be one of trace, debug, info, warn, error")

	oneOf("ORCH_ENGINE_DRIVER", c.EngineDriver, string(jobs.Docker), string(jobs.RawExec), string(jobs.Mock))
	oneOf("ORCH_ENGINE_KEY_RELOAD", c.KeyReload, "restart", "signal")
	err := registry.CheckKeyProofPath(c.KeyProofPath)
	bad(err == nil, "ORCH_ENGINE_KEY_PROOF_PATH", "%v", err)
	oneOf("ORCH_ENGINE_LOGS", c.EngineLogs, "auto", "nomad", "driver")
	bad(c.EngineImage != "", "ORCH_ENGINE_IMAGE", "must be set")
	if c.EngineImage != "" {
		bad(scheduler.CheckImage(jobs.Driver(c.EngineDriver), c.EngineImage) == nil, "ORCH_ENGINE_IMAGE", "is not an image; with raw_exec it is the name of an executable, without a path")
	}
	if jobs.Driver(c.EngineDriver) == jobs.RawExec {
		bad(isJobPath(c.EngineBinDir), "ORCH_ENGINE_BIN_DIR", "must be an absolute path with raw_exec, "+plainPath)
	}
	bad(jobs.Driver(c.EngineDriver) != jobs.Mock || c.EngineJobFile != "", "ORCH_ENGINE_JOB_FILE", "must be set with mock_driver: the job file built in is for engines that run")
	bad(c.CatalogPath == "" || isJobPath(c.CatalogPath), "ORCH_CATALOG_PATH", "must be an absolute path, "+plainPath)
	for i, glob := range c.RestartSubsystems {
		_, err := path.Match(glob, "")
		bad(err == nil && glob != "", "ORCH_RESTART_SUBSYSTEMS", "the name number %d is not a glob pattern", i+1)
	}
	for i, name := range c.Passthrough {
		// Its text stays out: it may be NAME=value, and the value a key.
		bad(namePattern.MatchString(name), "ORCH_ENGINE_ENV_PASSTHROUGH", "entry %d is not the name of a variable", i+1)
		bad(!reserved(name), "ORCH_ENGINE_ENV_PASSTHROUGH", "entry %d is a variable that engines get from Nomad or from the service itself", i+1)
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

	bad(pluginPattern.MatchString(c.VolumePlugin), "ORCH_VOLUME_PLUGIN", "must be the name of a file, without a path")
	atLeast("ORCH_ENGINE_CPU_MHZ", c.EngineCPUMHz, 1)
	atLeast("ORCH_ENGINE_MEMORY_MB", c.EngineMemoryMB, 10)
	atLeast("ORCH_VOLUME_POOL", c.VolumePool, 0)
	atLeast("ORCH_WARM_POOL", c.WarmPool, 0)
	atLeast("ORCH_BOOT_TIMEOUT_S", c.BootTimeoutS, 1)
	atLeast("ORCH_IDLE_TIMEOUT_S", c.IdleTimeoutS, 0)
	atLeast("ORCH_HEALTH_CHECK_INTERVAL_S", c.HealthCheckIntervalS, 1)
	atLeast("ORCH_HEALTH_CHECK_TIMEOUT_S", c.HealthCheckTimeoutS, 1) // Nomad refuses less
	atLeast("ORCH_HEALTH_MAX_FAILURES", c.HealthMaxFailures, 1)
	atLeast("ORCH_RESTART_BACKOFF_BASE_S", c.RestartBackoffBaseS, 1)
	bad(unread["ORCH_RESTART_BACKOFF_BASE_S"] || c.RestartBackoffMaxS >= c.RestartBackoffBaseS, "ORCH_RESTART_BACKOFF_MAX_S", "must not be less than ORCH_RESTART_BACKOFF_BASE_S")
	atLeast("ORCH_RESTART_MAX_ATTEMPTS", c.RestartMaxAttempts, 0)
	atLeast("ORCH_RECONCILE_INTERVAL_S", c.ReconcileIntervalS, 1)
	atLeast("ORCH_ORPHAN_GRACE_S", c.OrphanGraceS, 1)
	return errs
}

// contractVariables are those of the engine contract (docs/tutorial-engine.md). A provider key of
// the same name would replace one of them: Nomad merges the files of all templates.
var contractVariables = []string{"ENGINE_KEY_HASH", "ENGINE_KEY_HASH_FILE", "SQLITE_DB_PATH", "CATALOG_DIR", "PORT"}

func reserved(name string) bool {
	return slices.Contains(contractVariables, name) || strings.HasPrefix(name, "NOMAD_")
}

// providerKeys are the variables named in Passthrough that are set and can be passed on
// under their names.
func (c *Config) providerKeys() map[string]string {
	keys := map[string]string{}
	for _, name := range c.Passthrough {
		if value, set := c.lookup[name]; set && namePattern.MatchString(name) {
			keys[name] = value
		}
	}
	return keys
}

// plainPath is what isJobPath asks for.
const plainPath = "without control characters, and without ${, which Nomad would replace"

// isJobPath says whether a path can stand in a job and means just itself there.
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

// isLoopback says whether only this machine reaches an address.
func isLoopback(s string) bool {
	host, _, err := net.SplitHostPort(s)
	return err == nil && isAddress(s) && net.ParseIP(host).IsLoopback()
}

// ReadAdminKey reads the admin key from a file; blanks and line ends around it
// do not count.
func ReadAdminKey(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	key := strings.TrimSpace(string(b))
	if len([]rune(key)) < minAdminKey {
		return "", fmt.Errorf("holds fewer than %d characters", minAdminKey)
	}
	return key, nil
}

// String lists the variables and what they are set to, without the admin key
// and the provider keys.
func (c Config) String() string {
	var list []string
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("env"); name != "" && name != "ORCH_ADMIN_KEY" && name != "ORCH_DATABASE_URL" {
			list = append(list, fmt.Sprintf("%s=%v", name, v.Field(i)))
		}
	}
	return strings.Join(list, " ")
}

// Format prints String whatever the verb: fmt would print unexported fields too.
func (c Config) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// Scheduler is the part of the configuration that the scheduler works by.
func (c *Config) Scheduler() scheduler.Options {
	job := jobs.Settings{
		HCL: c.jobFile, Driver: jobs.Driver(c.EngineDriver), KeyReload: c.KeyReload,
		NomadLogs: c.EngineLogs == "nomad" || c.EngineLogs == "auto" && c.EngineDriver == string(jobs.RawExec),
		BinDir:    c.EngineBinDir, CatalogPath: c.CatalogPath,
		CheckIntervalS: c.HealthCheckIntervalS, CheckTimeoutS: c.HealthCheckTimeoutS, CheckMaxFailures: c.HealthMaxFailures,
		Namespace: c.NomadNamespace, Deployment: strings.TrimSuffix(c.ConsulPrefix, "/"),
	}
	return scheduler.Options{
		Job: job, DefaultImage: c.EngineImage, KeyProofPath: c.KeyProofPath,
		Resources:    registry.Resources{CPUMHz: c.EngineCPUMHz, MemoryMB: c.EngineMemoryMB},
		BootTimeout:  time.Duration(c.BootTimeoutS) * time.Second,
		ProbeTimeout: time.Duration(c.HealthCheckTimeoutS) * time.Second,
		MaxFailures:  c.HealthMaxFailures,
		Restart: engine.Backoff{
			Base: time.Duration(c.RestartBackoffBaseS) * time.Second, Max: time.Duration(c.RestartBackoffMaxS) * time.Second,
			MaxAttempts: c.RestartMaxAttempts,
		},
		RestartSubsystems: c.RestartSubsystems,
		IdleTimeout:       time.Duration(min(c.IdleTimeoutS, math.MaxInt32)) * time.Second,
		VolumePool:        c.VolumePool,
		WarmPool:          c.WarmPool,
		ProviderKeys:      c.providerKeys(),

		ReconcileInterval: time.Duration(c.ReconcileIntervalS) * time.Second,
		OrphanGrace:       time.Duration(c.OrphanGraceS) * time.Second,
	}
}

// Variable documents one variable. Kind is text, number, true/false or list; the
// first of a group has its Section.
type Variable struct{ Name, Kind, Default, Description, Section string }

var kinds = map[reflect.Kind]string{reflect.String: "text", reflect.Int: "number", reflect.Bool: "true or false", reflect.Slice: "list"}

// Variables lists every ORCH_ variable in the order of the struct.
func Variables() []Variable {
	var list []Variable
	t := reflect.TypeFor[Config]()
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		if name := tag.Get("env"); name != "" {
			list = append(list, Variable{name, kinds[t.Field(i).Type.Kind()], tag.Get("envDefault"), tag.Get("desc"), tag.Get("section")})
		}
	}
	return list
}
