package engine

import (
	"errors"
	"fmt"
	"net"
	"strconv"
)

// LookupEnv is os.LookupEnv, or a test's stand-in.
type LookupEnv func(name string) (value string, set bool)

// Config contains all settings of an engine.
type Config struct {
	Addr       string    // host:port to listen on
	BrainPath  string    // SQLITE_DB_PATH
	CatalogDir string    // CATALOG_DIR, may be empty
	KeySource  keySource // source of the key's hash
	TLSFile    string    // certificate, chain and key; empty: plain HTTP
	Switches   Switches
	Env        LookupEnv // the variables that GET /env reads
}

// LoadConfig reads the environment and the switches. It reports all problems, by variable
// name, and never the value of a secret.
func LoadConfig(args []string, env LookupEnv) (Config, error) {
	get := func(name string) string { v, _ := env(name); return v }
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }

	sw, err := parseSwitches(args, get("ENGINE_SWITCHES"))
	if err != nil {
		errs = append(errs, err)
	}
	port := get("PORT")
	if port == "" {
		port = "8000"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		fail("PORT: %q is not a port number", port)
	}
	cfg := Config{
		Addr:       net.JoinHostPort(get("HOST"), port),
		BrainPath:  get("SQLITE_DB_PATH"),
		CatalogDir: get("CATALOG_DIR"),
		KeySource:  keySource{file: get("ENGINE_KEY_HASH_FILE"), value: get("ENGINE_KEY_HASH")},
		TLSFile:    get("ENGINE_TLS_FILE"),
		Switches:   sw,
		Env:        env,
	}
	if cfg.BrainPath == "" {
		fail("SQLITE_DB_PATH is not set; set it to the brain's file")
	}
	if cfg.KeySource == (keySource{}) {
		fail("set ENGINE_KEY_HASH or ENGINE_KEY_HASH_FILE")
	}
	return cfg, errors.Join(errs...)
}
