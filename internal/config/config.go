// Package config is the service's configuration: one struct, filled from the
// environment, with its defaults and its checks in one place.
package config

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/caarlos0/env/v11"
)

// Config is everything that an operator can set. The addresses and tokens of Nomad, Consul
// and Vault are read by their own clients from their standard variables.
type Config struct {
	Addr            string `section:"The service" env:"ORCH_ADDR" envDefault:":8000" desc:"address to listen on"`
	AllowHTTP       bool   `env:"ORCH_ALLOW_HTTP" envDefault:"false" desc:"serve plain HTTP on an address that other machines can reach, because something in front of the service ends TLS. On loopback plain HTTP is always allowed"`
	TLSCertFile     string `env:"ORCH_TLS_CERT_FILE" desc:"certificate of the service with its chain, in PEM format; serves HTTPS (TLS 1.2 or newer, HTTP/2) instead of HTTP. Read again on SIGHUP and when the file changes, as are the next two; no connection is dropped"`
	TLSKeyFile      string `env:"ORCH_TLS_KEY_FILE" desc:"key of that certificate, in PEM format"`
	TLSClientCAFile string `env:"ORCH_TLS_CLIENT_CA_FILE" desc:"authorities of clients, in PEM format: every client must then show a certificate of one of them, on all endpoints. Default: clients need no certificate"`
	AdminKey        string `env:"ORCH_ADMIN_KEY" json:"-" desc:"key of the admin endpoints, at least 16 characters (this, ORCH_ADMIN_KEY_FILE or ORCH_ADMIN_KEYS_FILE is required)"`
	// AdminKeyFile is read at the start and again on SIGHUP.
	AdminKeyFile  string `env:"ORCH_ADMIN_KEY_FILE" desc:"file with the admin key, instead of ORCH_ADMIN_KEY; read again on SIGHUP"`
	AdminKeysFile string `env:"ORCH_ADMIN_KEYS_FILE" desc:"file with any number of admin keys, in addition to the one of ORCH_ADMIN_KEY or ORCH_ADMIN_KEY_FILE. Each line has a name, a role and a key, separated by blanks: the role is admin or read-only (calls that only read), and sha256: with the SHA-256 of the key in hexadecimal digits can stand for the key. The audit log names the key of each change. Two lines may have the same name and role, while one key replaces the other. Read again on SIGHUP and when the file changes"`
	LogLevel      string `env:"ORCH_LOG_LEVEL" envDefault:"info" desc:"trace, debug, info, warn or error"`
	LogJSON       bool   `env:"ORCH_LOG_JSON" envDefault:"false" desc:"write log lines as JSON"`
	AccessLog     bool   `env:"ORCH_ACCESS_LOG" envDefault:"true" desc:"write a log line for each request, at level info: its method, route, status, duration, product, name of the admin key, request id and remote address"`
	OpsAddr       string `env:"ORCH_OPS_ADDR" envDefault:"127.0.0.1:8001" desc:"address of the listener for operators: /metrics in Prometheus's format, Go's profiles below /debug/pprof/, and the admin's calls; off: no such listener. If the default address is in use, as by a second replica on one machine, the service warns and runs without this listener. An address that is set here and in use is an error. It serves plain HTTP: an address that is not a loopback address needs ORCH_ALLOW_HTTP, and is for private networks only"`
	AdminOpsOnly  bool   `env:"ORCH_ADMIN_ON_OPS_ONLY" envDefault:"false" desc:"serve the admin's calls on ORCH_OPS_ADDR only; on ORCH_ADDR they are unknown routes (404), as is any other call with an X-Admin-Key header. An address in use is then always an error"`
	MaxConns      int    `env:"ORCH_MAX_CONNECTIONS" envDefault:"3200" desc:"maximum number of open connections to ORCH_ADDR; a new one then replaces the one that has been idle longest, or waits. Each takes up to 25 KB of memory. Set more than twice ORCH_MAX_REQUESTS, so that refused calls and probes still find a place. At most as many as the process has file descriptors for"`
	MaxRequests   int    `env:"ORCH_MAX_REQUESTS" envDefault:"1500" desc:"maximum number of concurrent requests of a replica; others get 503 OVERLOADED at once. As many admits of running engines are served in addition; /live, /ready, /health and /docs do not count"`
	WrongKeys     int    `env:"ORCH_WRONG_KEYS_PER_MINUTE" envDefault:"60" desc:"number of calls with wrong keys that one source may make per minute, to a replica; a source is an IPv4 address, or the /64 of an IPv6 address. Above it, calls with wrong keys get 429 TOO_MANY_WRONG_KEYS; calls with right keys are served as before, because others may call from the same address. 0: no limit"`
	Docs          bool   `env:"ORCH_DOCS" envDefault:"true" desc:"serve the description of the API (/docs, /openapi.yaml)"`
	DrainDelayS   int    `env:"ORCH_DRAIN_DELAY_S" envDefault:"5" desc:"after SIGTERM: how long calls are still served while /ready returns 503, in seconds; longer than a load balancer needs to notice"`

	EngineImage    string   `section:"Engines" env:"ORCH_ENGINE_IMAGE" desc:"image of engines whose product's policy names none (required); with raw_exec, the name of a file in ORCH_ENGINE_BIN_DIR"`
	EngineDriver   string   `env:"ORCH_ENGINE_DRIVER" envDefault:"docker" desc:"Nomad task driver: docker or raw_exec. mock_driver, which only development builds of Nomad have, runs no processes and is for measurements of scale"`
	EngineBinDir   string   `env:"ORCH_ENGINE_BIN_DIR" desc:"directory of engine executables on every node (required with raw_exec)"`
	PinImages      bool     `env:"ORCH_ENGINE_PIN_IMAGES" envDefault:"true" desc:"with docker: resolve an image to its digest when an engine is created, and always start that digest; false: always start the tag, whatever image that is on the engine's node"`
	EngineJobFile  string   `env:"ORCH_ENGINE_JOB_FILE" desc:"Nomad job file of an engine; default: the built-in file"`
	EngineCPUMHz   int      `env:"ORCH_ENGINE_CPU_MHZ" envDefault:"100" desc:"CPU of an engine, in MHz, unless the policy sets it"`
	EngineMemoryMB int      `env:"ORCH_ENGINE_MEMORY_MB" envDefault:"256" desc:"memory of an engine, in MiB, unless the policy sets it"`
	KeyReload      string   `env:"ORCH_ENGINE_KEY_RELOAD" envDefault:"restart" desc:"how an engine gets a new key hash: restart of its process, or signal (SIGHUP, then it reads ENGINE_KEY_HASH_FILE)"`
	KeyProofPath   string   `env:"ORCH_ENGINE_KEY_PROOF_PATH" envDefault:"/.orch/key-proof" desc:"path on which an engine proves its key: it must respond 401 or 403 without a key and with a wrong key, and anything else with its own key; any path that requires the key is suitable. A product's policy can set another path (key_proof_path)"`
	EngineTLS      string   `env:"ORCH_ENGINE_TLS" envDefault:"off" desc:"how engines serve: off: plain HTTP. pki: TLS with a certificate of their own, which Nomad gets from Vault into the file in ENGINE_TLS_FILE; the url of an engine is https, and the service sends it a key only after it has verified the certificate. Each engine changes at its next start (docs/install.md)"`
	EnginePKIPath  string   `env:"ORCH_ENGINE_PKI_PATH" envDefault:"pki-engines/issue/engine" desc:"with ORCH_ENGINE_TLS=pki: path in Vault that issues the certificates, MOUNT/issue/ROLE"`
	EngineCAFile   string   `env:"ORCH_ENGINE_CA_FILE" desc:"authorities of engines' certificates, in PEM format (required with ORCH_ENGINE_TLS=pki). Keep it set until no engine's url is https. Read again on SIGHUP and when the file changes"`
	EngineLogs     string   `env:"ORCH_ENGINE_LOGS" envDefault:"auto" desc:"who collects the output of engines: nomad (visible in Nomad's UI; costs about 30 MiB of helper processes per engine and some boot time), driver (docker logs; with raw_exec the output is lost), or auto: nomad with raw_exec, driver with docker"`
	JobUser        string   `env:"ORCH_JOB_USER" envDefault:"hashed" desc:"how the meta of an engine's job names its user, for searches in Nomad: hashed: the SHA-256 of the user_id; plain: the user_id; none. It takes effect at each engine's next start. The description of the job shows the user_id in any case"`
	ConsulUIURL    string   `env:"ORCH_CONSUL_UI_URL" desc:"address of Consul's UI up to the datacenter, such as https://consul.example.com/ui/dc1, to which the job of each engine links in Nomad's UI; default: no link"`
	Passthrough    []string `env:"ORCH_ENGINE_ENV_PASSTHROUGH" desc:"comma-separated names of the service's variables that engines get through Vault, such as LLM_API_KEY,OPENAI_API_KEY. Each must be valid UTF-8 with at most 65535 bytes in its line of an env file; all together at most 256 KiB. Variables that Nomad or the service sets itself are not allowed (NOMAD_*, PORT, ENGINE_KEY_HASH, ENGINE_KEY_HASH_FILE, ENGINE_KEY_CHECKSUM, ENGINE_TLS_FILE, SQLITE_DB_PATH, CATALOG_DIR)"`
	CatalogPath    string   `env:"ORCH_CATALOG_PATH" desc:"directory of a shared catalog on every node, read-only for engines"`
	VolumePlugin   string   `env:"ORCH_VOLUME_PLUGIN" envDefault:"mkdir" desc:"Nomad plugin that creates the volumes of engines: mkdir, which is built in, or the file name of orch-quota in the nodes' host_volume_plugin_dir, which can limit their size (a policy's brain_mb); nodes without the plugin get no engines"`
	VolumePool     int      `env:"ORCH_VOLUME_POOL" envDefault:"8" desc:"ready, empty host volumes kept per node; a node's pool is refilled when half is left, and all pools one after another when no volume was used for 5 s; between two nodes there is a pause of 0.3 s per engine on the first. A good size is a quarter of the engines per node"`
	WarmPool       int      `env:"ORCH_WARM_POOL" envDefault:"0" desc:"number of warm engines of the default image; a product's policy can add its own (warm_pool)"`

	ConsulPrefix   string `section:"Storage" env:"ORCH_CONSUL_PREFIX" envDefault:"orch/" desc:"prefix of all keys in Consul KV"`
	VaultMount     string `env:"ORCH_VAULT_MOUNT" envDefault:"orch" desc:"mount of the KV v2 engine in Vault"`
	NomadNamespace string `env:"ORCH_NOMAD_NAMESPACE" envDefault:"default" desc:"Nomad namespace of engines"`
	AllowOpenNomad bool   `env:"ORCH_ALLOW_OPEN_NOMAD" envDefault:"false" desc:"true: use a Nomad whose ACLs are off. There, any engine can run commands as root on its node, and read the secrets of all engines, so set it only for development on one machine; by default the service ends when it finds ACLs off"`

	SnapshotURL           string `section:"Snapshots" env:"ORCH_SNAPSHOT_URL" envDefault:"file:///var/lib/orch/snapshots" desc:"where snapshots of brains are stored. s3://BUCKET/PREFIX is a bucket; the parameters are endpoint=https://HOST:PORT (default: Amazon S3), region=REGION (default us-east-1), sse=AES256 or sse=aws:kms with kms_key=KEY. file:///DIRECTORY is a directory, which must exist, and suits only one machine with raw_exec; a warning is logged if Nomad has more than one client node (docs/install.md)"`
	SnapshotAccessKey     string `env:"ORCH_SNAPSHOT_ACCESS_KEY" json:"-" desc:"access key of the bucket. Without it, the keys are those of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or of the machine's or the container's role"`
	SnapshotAccessKeyFile string `env:"ORCH_SNAPSHOT_ACCESS_KEY_FILE" desc:"file with the access key, instead of ORCH_SNAPSHOT_ACCESS_KEY; read at the start"`
	SnapshotSecretKey     string `env:"ORCH_SNAPSHOT_SECRET_KEY" json:"-" desc:"secret key of the bucket (required with an access key)"`
	SnapshotSecretKeyFile string `env:"ORCH_SNAPSHOT_SECRET_KEY_FILE" desc:"file with the secret key, instead of ORCH_SNAPSHOT_SECRET_KEY; read at the start"`
	SnapshotCAFile        string `env:"ORCH_SNAPSHOT_CA_FILE" desc:"authorities of the certificate of the snapshot store, in PEM format, for the service and for the workers on the nodes; read at the start. Default: those of the system, which the image of the worker has, too"`
	SnapshotWorker        string `env:"ORCH_SNAPSHOT_WORKER" desc:"what makes snapshots and restores them on the node of a brain. With docker, the image of orch-brain, which every node can get; there is no default, and without it no snapshot can be made. With raw_exec, the path of the executable on every node; default: orch-brain in ORCH_ENGINE_BIN_DIR"`
	OnDrain               string `env:"ORCH_ON_DRAIN" envDefault:"wait" desc:"what happens to the engines of a node that an operator drains in Nomad: wait (they end at the drain's deadline, and start again when the node is back) or move (they are moved to other nodes); see docs/how-to/evacuate-a-node.md"`
	EvacuateParallel      int    `env:"ORCH_EVACUATE_PARALLEL" envDefault:"4" desc:"maximum number of engines of one node that are moved to other nodes at a time"`
	SnapshotsPerNode      int    `env:"ORCH_SNAPSHOTS_PER_NODE" envDefault:"1" desc:"maximum number of workers that run on a node at a time; others wait"`
	SnapshotBytesPerS     int    `env:"ORCH_SNAPSHOT_BYTES_PER_S" envDefault:"0" desc:"limit of the transfer of each worker, in bytes per second; 0: no limit"`
	DrillsPerDay          int    `env:"ORCH_DRILLS_PER_DAY" envDefault:"1" desc:"how many snapshots of each product are restored per day into a volume that is removed again, to show that they can be; 0: none; at most 1000 (docs/snapshots.md)"`

	DatabaseURL        string `section:"Audit log" env:"ORCH_DATABASE_URL" envDefault:"sqlite://orch-data/audit.db" json:"-" desc:"audit log: sqlite://FILE for exactly one replica, or postgres://HOST/DATABASE for any number. A FILE that does not begin with a slash is relative to the working directory. The default is for trying orch in a checkout; in production set an absolute path, such as sqlite:///var/lib/orch/audit.db (a warning is logged if the file is relative and the working directory is /)"`
	AuditRetentionDays int    `env:"ORCH_AUDIT_RETENTION_DAYS" envDefault:"90" desc:"how long audit rows are kept, in days"`

	BootTimeoutS         int      `section:"Health and restarts" env:"ORCH_BOOT_TIMEOUT_S" envDefault:"60" desc:"time limit of a boot, in seconds"`
	BootDetection        string   `env:"ORCH_BOOT_DETECTION" envDefault:"either" desc:"who reports that an engine is usable. probe: the service asks the engine. consul: the engine's check in Consul; the service never connects to engines. either: the service asks the engine, and Consul's check counts for engines that it cannot connect to. Without a connection, boots are noticed up to a check's interval later, and keys are not proved (docs/operations.md)"`
	IdleTimeoutS         int      `env:"ORCH_IDLE_TIMEOUT_S" envDefault:"900" desc:"time without an admit after which an engine is put to sleep, in seconds, unless the product's policy sets it; 0: never"`
	HealthCheckIntervalS int      `env:"ORCH_HEALTH_CHECK_INTERVAL_S" envDefault:"30" desc:"interval of the Consul check of a running engine, in seconds"`
	HealthCheckTimeoutS  int      `env:"ORCH_HEALTH_CHECK_TIMEOUT_S" envDefault:"10" desc:"time limit of one health check, in seconds"`
	HealthMaxFailures    int      `env:"ORCH_HEALTH_MAX_FAILURES" envDefault:"3" desc:"number of consecutive failed checks after which an engine is failed"`
	RestartBackoffBaseS  int      `env:"ORCH_RESTART_BACKOFF_BASE_S" envDefault:"5" desc:"wait before the first automatic restart, in seconds; it doubles with each restart"`
	RestartBackoffMaxS   int      `env:"ORCH_RESTART_BACKOFF_MAX_S" envDefault:"300" desc:"maximum wait before an automatic restart, in seconds"`
	RestartMaxAttempts   int      `env:"ORCH_RESTART_MAX_ATTEMPTS" envDefault:"8" desc:"number of automatic restarts before the service gives up"`
	RestartSubsystems    []string `env:"ORCH_RESTART_SUBSYSTEMS" envDefault:"brain" desc:"subsystems in an engine's /health that a restart may repair, as comma-separated names or globs. An engine that responds, and none of whose failed subsystems is in this list, stays running (upstream_down) and is not restarted until it recovers or stops responding; *: restart for any failed subsystem"`

	ReconcileIntervalS int `env:"ORCH_RECONCILE_INTERVAL_S" envDefault:"60" desc:"time between two full passes of reconcile, in seconds"`
	OrphanGraceS       int `env:"ORCH_ORPHAN_GRACE_S" envDefault:"600" desc:"how long a job, volume, variable or key without a row is kept before it is removed, in seconds"`

	// jobFile is the text of the engine's job file.
	jobFile string
	// snapshotCA is the text of SnapshotCAFile.
	snapshotCA string
	// lookup contains the variables named in Passthrough.
	lookup map[string]string
}

// Load fills a Config from variables in the form NAME=value, as in os.Environ. The error
// names every invalid variable.
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

// named converts the parser's errors, which name struct fields, into errors that name
// variables, and adds these variables to unread. The errors do not contain the values,
// because one may be a secret.
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

// secretVariables are the variables whose values String leaves out.
var secretVariables = []string{"ORCH_ADMIN_KEY", "ORCH_DATABASE_URL", "ORCH_SNAPSHOT_ACCESS_KEY", "ORCH_SNAPSHOT_SECRET_KEY"}

// String lists the variables and their values, without secrets.
func (c Config) String() string {
	var list []string
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("env"); name != "" && !slices.Contains(secretVariables, name) {
			list = append(list, fmt.Sprintf("%s=%v", name, v.Field(i)))
		}
	}
	return strings.Join(list, " ")
}

// Format prints String for every verb, because fmt would print unexported fields too.
func (c Config) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }
