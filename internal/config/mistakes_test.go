package config

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wrong lists invalid values for every variable that has some.
var wrong = map[string][]string{
	"ORCH_ADDR":                   {"8000", "host", "::1:80:", ":99999", ":http", "host:"},
	"ORCH_ACCESS_LOG":             {"maybe"},
	"ORCH_OPS_ADDR":               {"8001", "host", "::1:80:", ":99999", "Off"},
	"ORCH_ADMIN_ON_OPS_ONLY":      {"maybe"},
	"ORCH_ADMIN_KEY":              {"fifteen-letters", "é12345678901234"},
	"ORCH_ADMIN_KEY_FILE":         {"/no/such/file", "/dev/null"},
	"ORCH_ADMIN_KEYS_FILE":        {"/no/such/file", "/dev/null"},
	"ORCH_DATABASE_URL":           {"mysql://host/db", "audit.db", "postgres:host"},
	"ORCH_AUDIT_RETENTION_DAYS":   {"0", "x"},
	"ORCH_ALLOW_HTTP":             {"maybe"},
	"ORCH_TLS_CERT_FILE":          {"/no/such/file"},
	"ORCH_TLS_KEY_FILE":           {"/no/such/file"},
	"ORCH_TLS_CLIENT_CA_FILE":     {"/no/such/file"},
	"ORCH_MAX_CONNECTIONS":        {"0", "many"},
	"ORCH_MAX_REQUESTS":           {"0", "many"},
	"ORCH_DOCS":                   {"maybe"},
	"ORCH_WRONG_KEYS_PER_MINUTE":  {"-1", "many"},
	"ORCH_DRAIN_DELAY_S":          {"-1", "5s"},
	"ORCH_LOG_LEVEL":              {"loud"},
	"ORCH_LOG_JSON":               {"maybe"},
	"ORCH_ENGINE_IMAGE":           {"a b", "${node.unique.id}", "-x", "a\nb"},
	"ORCH_ENGINE_DRIVER":          {"exec", "Docker"},
	"ORCH_ENGINE_PIN_IMAGES":      {"maybe"},
	"ORCH_ENGINE_JOB_FILE":        {"/no/such/file"},
	"ORCH_ENGINE_CPU_MHZ":         {"0", "-1", "many", "1.5"},
	"ORCH_VOLUME_PLUGIN":          {"plugins/orch-quota", ".hidden", `a"b`},
	"ORCH_ENGINE_MEMORY_MB":       {"9", "256MB"},
	"ORCH_ENGINE_KEY_RELOAD":      {"reload"},
	"ORCH_ENGINE_KEY_PROOF_PATH":  {"info", "//host/info", "/health", "/a b", "/x\n", "/health?x=1", "/./health"},
	"ORCH_ENGINE_TLS":             {"on", "PKI"},
	"ORCH_ENGINE_PKI_PATH":        {"pki-engines", "pki-engines/sign/engine", "/pki-engines/issue/engine", "pki/issue/${node.unique.id}", `pki/issue/a"b`, "pki/issue/a b"},
	"ORCH_ENGINE_CA_FILE":         {"/no/such/file", "/dev/null"},
	"ORCH_JOB_USER":               {"sha1", "Plain"},
	"ORCH_CONSUL_UI_URL":          {"consul.example.com/ui/dc1", "javascript:alert(1)", "https://", "https://u:p@consul.example.com/ui/dc1", "https://consul.example.com/ui/dc1?x=1"},
	"ORCH_ENGINE_LOGS":            {"journald"},
	"ORCH_ENGINE_ENV_PASSTHROUGH": {"A B", "A,,B", "1A", "A=b", "A.b", "ENGINE_KEY_HASH", "PORT", "NOMAD_TOKEN"},
	"ORCH_CATALOG_PATH":           {"relative/path", "/a/${node.unique.id}", "/a\nb", "/a\xff"},
	"ORCH_VOLUME_POOL":            {"-1", "x"},
	"ORCH_WARM_POOL":              {"-1", "x"},
	"ORCH_IDLE_TIMEOUT_S":         {"-1", "15m"},
	"ORCH_SNAPSHOT_URL": {
		"/var/lib/snapshots", "file://host/directory", "file:snapshots", "file:///directory?x=1", "s3:///prefix", "s3://key:secret@bucket", "https://store.example/bucket",
		"s3://bucket?endpoint=store.example:9000", "s3://bucket?endpoint=https://store.example/path", "s3://bucket?sse=yes", "s3://bucket?size=1",
	},
	"ORCH_SNAPSHOT_ACCESS_KEY":      {"a b", "\xff", "without-a-secret-key"},
	"ORCH_SNAPSHOT_ACCESS_KEY_FILE": {"/no/such/file", "/dev/null"},
	"ORCH_SNAPSHOT_SECRET_KEY":      {"a\nb", "without-an-access-key"},
	"ORCH_SNAPSHOT_SECRET_KEY_FILE": {"/no/such/file", "/dev/null"},
	"ORCH_SNAPSHOT_CA_FILE":         {"/no/such/file", "/dev/null"},
	"ORCH_SNAPSHOT_WORKER":          {"a b", "${node.unique.id}"},
	"ORCH_SNAPSHOTS_PER_NODE":       {"0", "many"},
	"ORCH_EVACUATE_PARALLEL":        {"0", "many"},
	"ORCH_ON_DRAIN":                 {"stay"},
	"ORCH_SNAPSHOT_BYTES_PER_S":     {"-1", "10MB"},
	"ORCH_DRILLS_PER_DAY":           {"-1", "1001", "daily"},
	"ORCH_CONSUL_PREFIX":            {"orch", "/orch/", "or ch/", "/", "a//b/"},
	"ORCH_VAULT_MOUNT":              {"/orch", "orch/", "a//b", "or ch"},
	"ORCH_NOMAD_NAMESPACE":          {"*"},
	"ORCH_ALLOW_OPEN_NOMAD":         {"maybe"},
	"ORCH_BOOT_DETECTION":           {"Consul", "both"},
	"ORCH_BOOT_TIMEOUT_S":           {"0", "1m", "99999999999999999999"},
	"ORCH_HEALTH_CHECK_INTERVAL_S":  {"0", "x"},
	"ORCH_HEALTH_CHECK_TIMEOUT_S":   {"0", "x"},
	"ORCH_HEALTH_MAX_FAILURES":      {"0", "x"},
	"ORCH_RESTART_BACKOFF_BASE_S":   {"0", "x"},
	"ORCH_RESTART_BACKOFF_MAX_S":    {"4", "x"},
	"ORCH_RESTART_MAX_ATTEMPTS":     {"-1", "x"},
	"ORCH_RESTART_SUBSYSTEMS":       {"[", "brain,,db"},
	"ORCH_RECONCILE_INTERVAL_S":     {"0", "1m"},
	"ORCH_ORPHAN_GRACE_S":           {"0", "x"},
}

// namesIn lists the variables at the beginning of an error's lines.
func namesIn(err error) []string {
	var names []string
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			name, _, _ := strings.Cut(line, ":")
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func TestMistakeIsNamed(t *testing.T) {
	for name, values := range wrong {
		for _, value := range values {
			t.Run(name+"="+value, func(t *testing.T) {
				_, err := Load(least(name + "=" + value))
				if got := namesIn(err); !slices.Equal(got, []string{name}) {
					t.Errorf("named %v: %v", got, err)
				} else if n := strings.Count(err.Error(), "\n"); n > 0 {
					t.Errorf("one mistake has %d lines: %v", n+1, err)
				}
			})
		}
	}
	for _, v := range Variables() {
		if _, tested := wrong[v.Name]; !tested && v.Name != "ORCH_ENGINE_BIN_DIR" {
			t.Errorf("no wrong value of %s is tested", v.Name)
		}
	}
	t.Run("with checks only", func(t *testing.T) {
		_, err := Load(least("ORCH_ENGINE_IMAGE=engine", "ORCH_BOOT_DETECTION=consul", "ORCH_BOOT_TIMEOUT_S=40", "ORCH_ENGINE_KEY_RELOAD=signal"))
		if got := namesIn(err); !slices.Equal(got, []string{"ORCH_BOOT_TIMEOUT_S", "ORCH_ENGINE_KEY_RELOAD"}) {
			t.Errorf("named %v: %v", got, err)
		}
	})
	t.Run("with mock_driver", func(t *testing.T) {
		_, err := Load(least("ORCH_ENGINE_DRIVER=mock_driver", "ORCH_ENGINE_IMAGE=none"))
		if err == nil || !strings.Contains(err.Error(), "ORCH_ENGINE_JOB_FILE") {
			t.Errorf("got %v, want a mistake of ORCH_ENGINE_JOB_FILE", err)
		}
	})
	t.Run("with raw_exec", func(t *testing.T) {
		_, err := Load(least("ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=../engine", "ORCH_ENGINE_BIN_DIR=engines", "ORCH_SNAPSHOT_WORKER=orch-brain"))
		if got, want := namesIn(err), []string{"ORCH_ENGINE_BIN_DIR", "ORCH_ENGINE_IMAGE", "ORCH_SNAPSHOT_WORKER"}; !slices.Equal(got, want) {
			t.Errorf("named %v, want %v: %v", got, want, err)
		}
	})
}

func TestRequired(t *testing.T) {
	_, err := Load(nil)
	if got, want := namesIn(err), []string{"ORCH_ADMIN_KEY", "ORCH_ENGINE_IMAGE", "ORCH_TLS_CERT_FILE"}; !slices.Equal(got, want) {
		t.Errorf("named %v, want %v: %v", got, want, err)
	}
	if _, err := Load(least("ORCH_ADMIN_KEY=sixteen-letters!")); err != nil {
		t.Errorf("16 characters are refused: %v", err)
	}
}

// A provider key that would not reach engines unchanged prevents the start, with its name
// and without its value: Nomad would kill every engine whose env file it cannot read.
func TestProviderKeyThatNomadCannotRead(t *testing.T) {
	const most = 65535 - len(`LLM_API_KEY=""`)
	for name, value := range map[string]string{
		"too long": strings.Repeat("x", 66_000), "one byte too long": strings.Repeat("x", most+1), "too long when escaped": strings.Repeat("<", 11_000),
		"not UTF-8": "sk-\xff-key", "a NUL": "sk-\x00-key",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(least("ORCH_ENGINE_ENV_PASSTHROUGH=OTHER,LLM_API_KEY", "OTHER=x", "LLM_API_KEY="+value))
			if got := namesIn(err); !slices.Equal(got, []string{"LLM_API_KEY"}) {
				t.Fatalf("named %v", got)
			}
			if strings.Contains(err.Error(), value) || strings.Contains(err.Error(), "sk-") {
				t.Error("the error has the key")
			}
			if strings.Contains(name, "long") && !strings.Contains(err.Error(), "65535") {
				t.Errorf("the limit is missing: %v", err)
			}
		})
	}
	mustLoad(t, least("ORCH_ENGINE_ENV_PASSTHROUGH=LLM_API_KEY", "LLM_API_KEY="+strings.Repeat("x", most)))
	mustLoad(t, least("ORCH_ENGINE_ENV_PASSTHROUGH=OTHER", "LLM_API_KEY="+strings.Repeat("x", most+1)))
	t.Run("together", func(t *testing.T) {
		_, err := Load(least("ORCH_ENGINE_ENV_PASSTHROUGH=A,B,C,D,E",
			"A="+strings.Repeat("x", 60_000), "B="+strings.Repeat("x", 60_000), "C="+strings.Repeat("x", 60_001), "D="+strings.Repeat("x", 60_000), "E="+strings.Repeat("x", 60_000)))
		if got := namesIn(err); !slices.Equal(got, []string{"C"}) {
			t.Errorf("named %v: %v", got, err)
		}
	})
}

// TestAllMistakesAtOnce: all mistakes are reported together.
func TestAllMistakesAtOnce(t *testing.T) {
	var environ, want []string
	for name, values := range wrong {
		environ, want = append(environ, name+"="+values[0]), append(want, name)
	}
	slices.Sort(want)
	// The variable that it is compared with is invalid itself.
	environ = append(environ, "ORCH_RESTART_BACKOFF_BASE_S=-1", "ORCH_RESTART_BACKOFF_MAX_S=-2")
	_, err := Load(environ)
	if got := namesIn(err); !slices.Equal(got, want) {
		t.Errorf("named %v, want %v: %v", got, want, err)
	}
}
