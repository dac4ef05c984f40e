package config

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	nomadjobs "github.com/septemberai/orch/nomad-jobs"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/scheduler/boot"
)

const adminKey = "admin-key-of-the-tests"

// least returns the minimum configuration.
func least(more ...string) []string {
	return append([]string{"ORCH_ADMIN_KEY=" + adminKey, "ORCH_ENGINE_IMAGE=registry/engine:1", "ORCH_ALLOW_HTTP=true"}, more...)
}

// mustLoad loads a configuration without mistakes.
func mustLoad(t *testing.T, environ []string) *Config {
	t.Helper()
	c, err := Load(environ)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// contractDefaults are the defaults that docs/configuration.md promises: a change of one
// affects every user who relies on it.
var contractDefaults = map[string]string{
	"ORCH_ADDR":                    ":8000",
	"ORCH_OPS_ADDR":                "127.0.0.1:8001",
	"ORCH_BOOT_TIMEOUT_S":          "60",
	"ORCH_HEALTH_CHECK_INTERVAL_S": "30",
	"ORCH_HEALTH_CHECK_TIMEOUT_S":  "10",
	"ORCH_HEALTH_MAX_FAILURES":     "3",
	"ORCH_RESTART_BACKOFF_BASE_S":  "5",
	"ORCH_RESTART_BACKOFF_MAX_S":   "300",
	"ORCH_RESTART_MAX_ATTEMPTS":    "8",
	"ORCH_RECONCILE_INTERVAL_S":    "60",
	"ORCH_ORPHAN_GRACE_S":          "600",
	"ORCH_DRAIN_DELAY_S":           "5",
	"ORCH_CONSUL_PREFIX":           "orch/",
}

func TestDefaultsAreTheContracts(t *testing.T) {
	documented := map[string]string{}
	for _, v := range Variables() {
		documented[v.Name] = v.Default
	}
	for name, want := range contractDefaults {
		if got := documented[name]; got != want {
			t.Errorf("%s is documented with default %q, want %q", name, got, want)
		}
	}
	c := mustLoad(t, least())
	got := []int{c.BootTimeoutS, c.HealthCheckIntervalS, c.HealthCheckTimeoutS, c.HealthMaxFailures, c.RestartBackoffBaseS, c.RestartBackoffMaxS, c.RestartMaxAttempts}
	if diff := cmp.Diff([]int{60, 30, 10, 3, 5, 300, 8}, got); diff != "" {
		t.Error(diff)
	}
}

// TestSetButEmptyIsUnset: an empty variable in a shell or a job file means the default, not
// zero.
func TestSetButEmptyIsUnset(t *testing.T) {
	var empty []string
	for _, v := range Variables() {
		if v.Name != "ORCH_ADMIN_KEY" && v.Name != "ORCH_ALLOW_HTTP" && v.Name != "ORCH_ENGINE_IMAGE" {
			empty = append(empty, v.Name+"=")
		}
	}
	got, want := mustLoad(t, least(empty...)), mustLoad(t, least())
	got.lookup, want.lookup = nil, nil
	if len(got.Passthrough) == 0 {
		got.Passthrough = nil
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Config{})); diff != "" {
		t.Error(diff)
	}
}

// TestEveryVariableIsRead: each documented variable has an effect.
func TestEveryVariableIsRead(t *testing.T) {
	file := t.TempDir() + "/engine.nomad.hcl"
	writeFile(t, file, "job {}")
	keyFile := t.TempDir() + "/key"
	writeFile(t, keyFile, "an-admin-key-in-a-file\n")
	cert, key := certificate(t)
	keysFile := t.TempDir() + "/keys"
	writeFile(t, keysFile, "alice admin an-admin-key-of-alice\n")
	values := map[string]string{
		"ORCH_ADMIN_KEYS_FILE": keysFile,
		"ORCH_DOCS":            "false", "ORCH_ALLOW_HTTP": "false", "ORCH_TLS_CERT_FILE": cert, "ORCH_TLS_KEY_FILE": key, "ORCH_TLS_CLIENT_CA_FILE": cert,
		"ORCH_ADMIN_KEY_FILE": keyFile, "ORCH_DATABASE_URL": "postgres://host/db",
		"ORCH_ADDR": "127.0.0.1:1", "ORCH_ADMIN_KEY": "another-admin-key", "ORCH_LOG_LEVEL": "warn", "ORCH_LOG_JSON": "true", "ORCH_ACCESS_LOG": "false", "ORCH_OPS_ADDR": "[::1]:0", "ORCH_ADMIN_ON_OPS_ONLY": "true",
		"ORCH_ENGINE_IMAGE": "other", "ORCH_ENGINE_DRIVER": "raw_exec", "ORCH_ENGINE_BIN_DIR": "/opt", "ORCH_ENGINE_JOB_FILE": file, "ORCH_ENGINE_PIN_IMAGES": "false", "ORCH_ENGINE_KEY_PROOF_PATH": "/info",
		"ORCH_ENGINE_KEY_RELOAD": "signal", "ORCH_ENGINE_LOGS": "nomad", "ORCH_ENGINE_ENV_PASSTHROUGH": "LLM_API_KEY,OPENAI_API_KEY", "ORCH_CATALOG_PATH": "/catalog",
		"ORCH_CONSUL_PREFIX": "a/b/", "ORCH_VAULT_MOUNT": "a/b", "ORCH_NOMAD_NAMESPACE": "engines", "ORCH_ALLOW_OPEN_NOMAD": "true",
		"ORCH_RESTART_SUBSYSTEMS": "brain,db*", "ORCH_BOOT_DETECTION": "consul", "ORCH_JOB_USER": "none", "ORCH_CONSUL_UI_URL": "https://consul.example/ui/dc1",
		"ORCH_SNAPSHOT_URL": "s3://bucket/brains?endpoint=https://store.example:9000", "ORCH_SNAPSHOT_ACCESS_KEY": "access", "ORCH_SNAPSHOT_SECRET_KEY": "secret",
		"ORCH_SNAPSHOT_ACCESS_KEY_FILE": keyFile, "ORCH_SNAPSHOT_SECRET_KEY_FILE": keyFile, "ORCH_SNAPSHOT_CA_FILE": cert, "ORCH_SNAPSHOT_WORKER": "registry/orch-brain:1",
		"ORCH_ON_DRAIN": "move", "ORCH_ENGINE_TLS": "pki", "ORCH_ENGINE_PKI_PATH": "pki/issue/other", "ORCH_ENGINE_CA_FILE": cert,
	}
	common := least("ORCH_ENGINE_BIN_DIR=/srv", "ORCH_ENGINE_IMAGE=engine") // valid for both drivers
	base := mustLoad(t, common)
	base.lookup = nil
	for _, v := range Variables() {
		t.Run(v.Name, func(t *testing.T) {
			value, ok := values[v.Name]
			if !ok {
				value = "17" // a number that is not a default
			}
			vars := append(slices.Clone(common), v.Name+"="+value)
			if v.Name == "ORCH_ADMIN_KEY_FILE" { // only one of the two may be set
				vars = append(vars, "ORCH_ADMIN_KEY=")
			}
			switch v.Name {
			case "ORCH_ALLOW_HTTP": // without it, an address on loopback is needed
				vars = append(vars, "ORCH_ADDR=127.0.0.1:8000")
			case "ORCH_SNAPSHOT_ACCESS_KEY", "ORCH_SNAPSHOT_ACCESS_KEY_FILE":
				vars = append(vars, "ORCH_SNAPSHOT_SECRET_KEY=secret")
			case "ORCH_SNAPSHOT_SECRET_KEY", "ORCH_SNAPSHOT_SECRET_KEY_FILE":
				vars = append(vars, "ORCH_SNAPSHOT_ACCESS_KEY=access")
			case "ORCH_ENGINE_TLS":
				vars = append(vars, "ORCH_ENGINE_CA_FILE="+cert)
			case "ORCH_TLS_CERT_FILE":
				vars = append(vars, "ORCH_TLS_KEY_FILE="+key)
			case "ORCH_TLS_KEY_FILE":
				vars = append(vars, "ORCH_TLS_CERT_FILE="+cert)
			case "ORCH_TLS_CLIENT_CA_FILE":
				vars = append(vars, "ORCH_TLS_CERT_FILE="+cert, "ORCH_TLS_KEY_FILE="+key)
			}
			c := mustLoad(t, vars)
			c.lookup = nil
			if cmp.Equal(base, c, cmp.AllowUnexported(Config{})) {
				t.Errorf("%s=%s changes nothing", v.Name, value)
			}
			if v.Description == "" || strings.HasSuffix(v.Description, ".") {
				t.Errorf("description is %q", v.Description)
			}
		})
	}
}

func TestOps(t *testing.T) {
	for _, c := range []struct {
		vars     []string
		addr     string
		required bool
	}{
		{nil, "127.0.0.1:8001", false},
		{[]string{"ORCH_OPS_ADDR="}, "127.0.0.1:8001", false},
		{[]string{"ORCH_OPS_ADDR=off"}, "", false},
		{[]string{"ORCH_OPS_ADDR=127.0.0.1:8001"}, "127.0.0.1:8001", true},
		{[]string{"ORCH_OPS_ADDR=:0"}, ":0", true},
		{[]string{"ORCH_ADMIN_ON_OPS_ONLY=true"}, "127.0.0.1:8001", true},
	} {
		addr, required := mustLoad(t, least(c.vars...)).Ops()
		if addr != c.addr || required != c.required {
			t.Errorf("%v: %q, required %t; want %q, %t", c.vars, addr, required, c.addr, c.required)
		}
	}
	_, err := Load(least("ORCH_ADMIN_ON_OPS_ONLY=true", "ORCH_OPS_ADDR=off"))
	if got := namesIn(err); !slices.Equal(got, []string{"ORCH_ADMIN_ON_OPS_ONLY"}) {
		t.Errorf("without a listener: named %v", got)
	}
}

func TestEngineLogs(t *testing.T) {
	for _, c := range []struct {
		driver, logs string
		nomad        bool
	}{
		{"docker", "auto", false}, {"docker", "nomad", true}, {"docker", "driver", false},
		{"raw_exec", "auto", true}, {"raw_exec", "nomad", true}, {"raw_exec", "driver", false},
	} {
		got := mustLoad(t, least("ORCH_ENGINE_BIN_DIR=/srv", "ORCH_ENGINE_IMAGE=engine", "ORCH_ENGINE_DRIVER="+c.driver, "ORCH_ENGINE_LOGS="+c.logs))
		if nomad := got.Scheduler().Job.NomadLogs; nomad != c.nomad {
			t.Errorf("%s, %s: by Nomad %t, want %t", c.driver, c.logs, nomad, c.nomad)
		}
	}
}

// TestDetection: without probes, only Consul shows which key a process has, so the job file
// must tell it.
func TestDetection(t *testing.T) {
	for value, want := range map[string]boot.Detection{"": boot.ByEither, "probe": boot.ByProbe, "either": boot.ByEither, "consul": boot.ByConsul} {
		got := mustLoad(t, least("ORCH_ENGINE_IMAGE=engine", "ORCH_BOOT_DETECTION="+value)).Scheduler()
		if got.Detection != want || got.Job.NeedsChecksum != (want == boot.ByConsul) {
			t.Errorf("%q: got %q, checksum %t", value, got.Detection, got.Job.NeedsChecksum)
		}
	}
}

// TestScheduler: the scheduler gets the configured values, in its units.
func TestScheduler(t *testing.T) {
	got := mustLoad(t, []string{
		"ORCH_ADMIN_KEY=" + adminKey, "ORCH_ADDR=127.0.0.1:8000", "ORCH_ENGINE_IMAGE=engine", "ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_BIN_DIR=/opt/engines",
		"ORCH_ENGINE_CPU_MHZ=11", "ORCH_ENGINE_MEMORY_MB=12", "ORCH_ENGINE_KEY_RELOAD=signal", "ORCH_CATALOG_PATH=/c", "ORCH_VOLUME_POOL=13", "ORCH_IDLE_TIMEOUT_S=17",
		"ORCH_ENGINE_KEY_PROOF_PATH=/me", "ORCH_JOB_USER=plain", "ORCH_CONSUL_UI_URL=https://consul.example/ui/dc1/",
		"ORCH_CONSUL_PREFIX=a/b/", "ORCH_NOMAD_NAMESPACE=ns", "ORCH_ALLOW_OPEN_NOMAD=true", "ORCH_BOOT_DETECTION=probe", "ORCH_BOOT_TIMEOUT_S=14", "ORCH_HEALTH_CHECK_INTERVAL_S=15",
		"ORCH_HEALTH_CHECK_TIMEOUT_S=16", "ORCH_HEALTH_MAX_FAILURES=17", "ORCH_WARM_POOL=18",
		"ORCH_RESTART_BACKOFF_BASE_S=19", "ORCH_RESTART_BACKOFF_MAX_S=20", "ORCH_RESTART_MAX_ATTEMPTS=21", "ORCH_RECONCILE_INTERVAL_S=22", "ORCH_ORPHAN_GRACE_S=23",
		"ORCH_SNAPSHOTS_PER_NODE=24", "ORCH_SNAPSHOT_BYTES_PER_S=25", "ORCH_ON_DRAIN=move", "ORCH_EVACUATE_PARALLEL=26", "ORCH_DRILLS_PER_DAY=27",
		"ORCH_ENGINE_ENV_PASSTHROUGH=SET,UNSET,EMPTY", "SET=x=y", "EMPTY=", "OTHER=z",
	}).Scheduler()
	want := scheduler.Options{
		Job: jobs.Settings{
			HCL: nomadjobs.Engine, Driver: jobs.RawExec, KeyReload: "signal", NomadLogs: true, BinDir: "/opt/engines", CatalogPath: "/c",
			CheckIntervalS: 15, CheckTimeoutS: 16, CheckMaxFailures: 17, Namespace: "ns", Deployment: "a/b",
			SitsOutDrains: true, UserMeta: "plain", ConsulUI: "https://consul.example/ui/dc1",
		},
		DefaultImage: "engine", KeyProofPath: "/me", Resources: engine.Resources{CPUMHz: 11, MemoryMB: 12},
		ReconcileInterval: 22 * time.Second, OrphanGrace: 23 * time.Second,
		BootTimeout: 14 * time.Second, ProbeTimeout: 16 * time.Second, Detection: boot.ByProbe, VolumePool: 13, IdleTimeout: 17 * time.Second,
		WarmPool: 18, MaxFailures: 17, Restart: engine.Backoff{Base: 19 * time.Second, Max: 20 * time.Second, MaxAttempts: 21}, RestartSubsystems: []string{"brain"},
		AllowOpenNomad: true, ProviderKeys: map[string]string{"SET": "x=y", "EMPTY": ""},
		MoveOnDrain: true, EvacuateParallel: 26,
		Snapshots: scheduler.Snapshots{Worker: "/opt/engines/orch-brain", PerNode: 24, BytesPerSecond: 25, DrillsPerDay: 27},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestSnapshots: the worker has a default only where it lies beside the engines, and the keys
// of the store can be in files.
func TestSnapshots(t *testing.T) {
	for _, c := range []struct{ driver, worker, want string }{
		{"docker", "", ""}, {"docker", "registry/orch-brain:1", "registry/orch-brain:1"},
		{"raw_exec", "", "/srv/orch-brain"}, {"raw_exec", "/usr/lib/orch/orch-brain", "/usr/lib/orch/orch-brain"},
	} {
		got := mustLoad(t, least("ORCH_ENGINE_BIN_DIR=/srv", "ORCH_ENGINE_IMAGE=engine", "ORCH_ENGINE_DRIVER="+c.driver, "ORCH_SNAPSHOT_WORKER="+c.worker)).Scheduler().Snapshots
		if got.Worker != c.want || got.PerNode != 1 || got.BytesPerSecond != 0 {
			t.Errorf("%s, %q: %+v, want the worker %q", c.driver, c.worker, got, c.want)
		}
	}
	access, secret := t.TempDir()+"/access", t.TempDir()+"/secret"
	writeFile(t, access, "an-access-key\n")
	writeFile(t, secret, " a-secret-key\n")
	ca, _ := certificate(t)
	c := mustLoad(t, least("ORCH_SNAPSHOT_URL=s3://bucket", "ORCH_SNAPSHOT_ACCESS_KEY_FILE="+access, "ORCH_SNAPSHOT_SECRET_KEY_FILE="+secret, "ORCH_SNAPSHOT_CA_FILE="+ca))
	if c.SnapshotAccessKey != "an-access-key" || c.SnapshotSecretKey != "a-secret-key" || !strings.HasPrefix(c.Scheduler().Snapshots.CA, "-----BEGIN CERTIFICATE-----") {
		t.Errorf("keys %q and %q, authorities %q", c.SnapshotAccessKey, c.SnapshotSecretKey, c.Scheduler().Snapshots.CA)
	}
	if at, err := c.SnapshotStore(); err != nil || c.LocalSnapshots() {
		t.Errorf("the store is %T, %v, local %t", at, err, c.LocalSnapshots())
	} else if _, ok := at.(*store.S3); !ok {
		t.Errorf("the store is %T", at)
	}
	standard := mustLoad(t, least())
	if at, err := standard.SnapshotStore(); err != nil || !standard.LocalSnapshots() {
		t.Errorf("the store is %T, %v, local %t", at, err, standard.LocalSnapshots())
	} else if _, ok := at.(*store.Dir); !ok {
		t.Errorf("the store is %T", at)
	}
	_, err := Load(least("ORCH_SNAPSHOT_SECRET_KEY=x", "ORCH_SNAPSHOT_ACCESS_KEY=x", "ORCH_SNAPSHOT_SECRET_KEY_FILE="+secret))
	if got := namesIn(err); !slices.Equal(got, []string{"ORCH_SNAPSHOT_SECRET_KEY_FILE"}) {
		t.Errorf("named %v: %v", got, err)
	}
}
