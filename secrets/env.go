package secrets

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-envparse"
	vault "github.com/hashicorp/vault/api"
)

const (
	// maxEnvLine limits a provider key's line in the file that Nomad reads, in bytes. One
	// byte more than this is too long for bufio.Scanner (MaxScanTokenSize), with which
	// go-envparse reads the file, and Nomad kills every engine of the mount.
	maxEnvLine = 64<<10 - 1
	// maxEnv limits all lines together, in bytes: half of the smallest maximum entry of
	// Vault's storages (Consul: 512 KiB), and far below Linux's maximum for the environment
	// of a process (execve(2): a quarter of the stack's limit, 2 MiB).
	maxEnv = 256 << 10
)

// CheckEnv reports the provider keys that would not reach an engine unchanged. It renders
// and parses each one as Nomad does. An error begins with the variable's name and never
// contains a value.
func CheckEnv(env map[string]string) error {
	var errs []error
	all, longest, longestName := 0, 0, ""
	for _, name := range slices.Sorted(maps.Keys(env)) {
		line, err := checkEnvLine(name, env[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		if all += line; line > longest {
			longest, longestName = line, name
		}
	}
	if len(errs) == 0 && all > maxEnv {
		errs = append(errs, fmt.Errorf("%s: shorten this or another provider key: together they have %d bytes as Nomad renders them, and the maximum is %d", longestName, all, maxEnv))
	}
	return errors.Join(errs...)
}

// checkEnvLine checks one variable, and returns the length of its line in bytes.
func checkEnvLine(name, value string) (int, error) {
	if strings.Contains(value, "\x00") {
		return 0, errors.New("contains a NUL, which cannot be in the environment of a process")
	}
	line := envLine(name, value)
	if len(line) > maxEnvLine+1 {
		return len(line), fmt.Errorf("is too long: its line in the file that Nomad reads would have %d bytes, and the maximum is %d, including name, quotes and escapes", len(line)-1, maxEnvLine)
	}
	// The parser's errors quote the value, so they are not passed on.
	read, err := envparse.Parse(bytes.NewReader(line))
	got, found := read[name]
	// Nomad replaces "." and "/" in a name, although the parser allows them.
	if err != nil || len(read) != 1 || !found || got != value || strings.ContainsAny(name, "./") {
		return len(line), errors.New("would not reach engines unchanged: the value must be valid UTF-8, and the name must match [A-Za-z_][A-Za-z0-9_]*")
	}
	return len(line), nil
}

// envLine renders a variable like the template in nomad-jobs/engine.nomad.hcl, in which
// toJSON is json.Marshal.
func envLine(name, value string) []byte {
	quoted, err := json.Marshal(value)
	if err != nil {
		panic("secrets: cannot encode a string: " + err.Error())
	}
	return fmt.Appendf(nil, "%s=%s\n", name, quoted)
}

// envPath is the path of the provider keys in the KV API.
const envPath = "engine-env"

// EnvTemplatePath is the path of the provider keys in a Nomad template.
func (v *Vault) EnvTemplatePath() string { return v.mount + "/data/" + envPath }

// PutEnv writes the provider keys unless Vault already has the same. It returns their
// version, and whether it wrote one. It refuses what CheckEnv refuses.
func (v *Vault) PutEnv(ctx context.Context, env map[string]string) (version int, written bool, err error) {
	if err := CheckEnv(env); err != nil {
		return 0, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	data := make(map[string]any, len(env))
	for name, value := range env {
		data[name] = value
	}
	for {
		held, err := v.env(ctx)
		if err != nil {
			return 0, false, err
		}
		current := 0
		if held.VersionMetadata != nil {
			current = held.VersionMetadata.Version
		}
		if current > 0 && sameEnv(held.Data, data) {
			return current, false, nil
		}
		secret, err := v.kv.Put(ctx, envPath, data, vault.WithCheckAndSet(current))
		if err = classify(err); err == nil {
			return secret.VersionMetadata.Version, true, nil
		}
		if !errors.Is(err, ErrConflict) || ctx.Err() != nil {
			return 0, false, err
		}
		// Another replica has written at the same time, usually the same keys.
	}
}

// EnvVersion returns the version of the provider keys in Vault, or 0 if there are none.
func (v *Vault) EnvVersion(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	held, err := v.env(ctx)
	if err != nil || held.VersionMetadata == nil {
		return 0, err
	}
	return held.VersionMetadata.Version, nil
}

// env reads the provider keys, or an empty secret if there are none. A deleted secret still
// has its version.
func (v *Vault) env(ctx context.Context) (*vault.KVSecret, error) {
	held, err := v.kv.Get(ctx, envPath)
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return &vault.KVSecret{}, nil
	}
	return held, err
}

func sameEnv(a, b map[string]any) bool {
	if len(a) != len(b) {
		return false
	}
	for name, value := range a {
		if other, ok := b[name]; !ok || other != value {
			return false
		}
	}
	return true
}
