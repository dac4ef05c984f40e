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
	// maxEnvLine bounds a provider key's line in the file that Nomad reads, in bytes:
	// one more, and bufio.Scanner (MaxScanTokenSize), by which go-envparse reads the
	// file, gives up, and Nomad kills every engine of the mount.
	maxEnvLine = 64<<10 - 1
	// maxEnv bounds all lines together, in bytes: half of what Vault's smallest storage
	// takes as one entry (Consul: 512 KiB), and far from what Linux takes as the
	// environment of a process (execve(2): a quarter of the stack's limit, 2 MiB).
	maxEnv = 256 << 10
)

// CheckEnv says which provider keys would not reach an engine as they are: each is
// rendered and read as Nomad does it. An error begins with the variable's name and
// never holds a value.
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
		errs = append(errs, fmt.Errorf("%s: is the longest of the provider keys, which are %d bytes together as Nomad renders them; at most %d are possible", longestName, all, maxEnv))
	}
	return errors.Join(errs...)
}

// checkEnvLine checks one variable and returns how many bytes its line has.
func checkEnvLine(name, value string) (int, error) {
	if strings.Contains(value, "\x00") {
		return 0, errors.New("contains a NUL, which no process can have in its environment")
	}
	line := envLine(name, value)
	if len(line) > maxEnvLine+1 {
		return len(line), fmt.Errorf("its line in the file that Nomad reads would be %d bytes; at most %d are possible, name, quotes and escapes included", len(line)-1, maxEnvLine)
	}
	// The errors of the parser quote what they found: they stay out of ours.
	read, err := envparse.Parse(bytes.NewReader(line))
	got, found := read[name]
	// In a name, Nomad replaces the "." and "/" that the parser allows.
	if err != nil || len(read) != 1 || !found || got != value || strings.ContainsAny(name, "./") {
		return len(line), errors.New("would not reach engines as it is: it must be valid UTF-8, and its name [A-Za-z_][A-Za-z0-9_]*")
	}
	return len(line), nil
}

// envLine is a variable as the template in nomad-jobs/engine.nomad.hcl renders it:
// toJSON of Nomad's templates is json.Marshal.
func envLine(name, value string) []byte {
	quoted, err := json.Marshal(value)
	if err != nil {
		panic("secrets: a string always marshals: " + err.Error())
	}
	return fmt.Appendf(nil, "%s=%s\n", name, quoted)
}

// envPath is where the provider keys are, as a path for the KV API.
const envPath = "engine-env"

// EnvTemplatePath is the provider keys' path as a Nomad template reads it.
func (v *Vault) EnvTemplatePath() string { return v.mount + "/data/" + envPath }

// PutEnv writes the provider keys that engines get, unless they are the ones
// that Vault holds, and returns their version and whether it is a new one. It refuses
// what CheckEnv refuses.
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
		// Another replica wrote at the same time: the same keys, as a rule.
	}
}

// EnvVersion is the version of the provider keys that Vault holds, 0 when it
// holds none.
func (v *Vault) EnvVersion(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	held, err := v.env(ctx)
	if err != nil || held.VersionMetadata == nil {
		return 0, err
	}
	return held.VersionMetadata.Version, nil
}

// env reads the provider keys; an empty secret when there are none. A deleted
// one still tells its version.
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
