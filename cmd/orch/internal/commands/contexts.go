package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/posener/complete"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

// contexts is the command line's configuration file. It contains the sources of keys, but
// no keys.
type contexts struct {
	Current  string              `json:"current,omitempty"` // the context in use; empty: none
	Contexts map[string]*profile `json:"contexts"`
}

// profile is a context: a service to call, and the sources of its keys.
type profile struct {
	Address     string `json:"address"`
	Product     string `json:"product,omitempty"` // slug or id
	PlatformKey source `json:"platform_key,omitzero"`
	AdminKey    source `json:"admin_key,omitzero"`
	// TLS names files, which the context does not contain.
	TLS client.TLS `json:"tls,omitzero"`
}

// namesNoKey reports whether the keys come from the default environment variables.
func (p *profile) namesNoKey() bool { return p.PlatformKey == (source{}) && p.AdminKey == (source{}) }

// contextsFile returns the path of the configuration file.
func contextsFile(env *cmdline.Env) (string, error) {
	dir, err := env.ConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the configuration directory: %w", err)
	}
	return filepath.Join(dir, "orch", "contexts.json"), nil
}

// readContexts reads the configuration file. Without a file, and without a configuration
// directory, there are no contexts.
// A damaged file is an error with exit code 2.
func readContexts(env *cmdline.Env) (*contexts, error) {
	all := &contexts{Contexts: map[string]*profile{}}
	file, err := contextsFile(env)
	if err != nil {
		return all, nil
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields() // a misspelt name of a source would select another key
	if err := dec.Decode(all); err != nil {
		return nil, cmdline.ConfiguredWrongly(fmt.Errorf("%s: %w", file, err))
	}
	for name, p := range all.Contexts {
		if p == nil {
			return nil, cmdline.ConfiguredWrongly(fmt.Errorf("%s: the context %q is empty", file, name))
		}
	}
	return all, nil
}

// changeContexts changes the configuration file under a lock. The change is atomic: a
// reader gets the file from before or after it.
func changeContexts(env *cmdline.Env, change func(*contexts) error) (err error) {
	file, err := contextsFile(env)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(file+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }() // which releases the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	all, err := readContexts(env)
	if err != nil {
		return err
	}
	if err := change(all); err != nil {
		return err
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(file, append(b, '\n'))
}

// replaceFile atomically writes a file that only its owner can read.
func replaceFile(file string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*") // created with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// names returns the names of the contexts, sorted.
func (c *contexts) names() []string { return slices.Sorted(maps.Keys(c.Contexts)) }

// named returns the context with this name.
func (c *contexts) named(name string) (*profile, error) {
	if p := c.Contexts[name]; p != nil {
		return p, nil
	}
	return nil, cmdline.Wrong("there is no context %q; orch context list shows all contexts", name)
}

// predictContexts completes the name of a context.
func predictContexts(env *cmdline.Env) complete.Predictor {
	return complete.PredictFunc(func(complete.Args) []string {
		all, err := readContexts(env)
		if err != nil {
			return nil
		}
		return all.names()
	})
}
