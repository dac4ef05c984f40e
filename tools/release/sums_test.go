package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSignature: minisign makes the key, and accepts the signature of the checksums; it and
// sha256sum refuse changed files.
func TestSignature(t *testing.T) {
	need(t, "minisign", "sha256sum")
	for name, password := range map[string]string{"Encrypted": "a password", "Plain": ""} {
		t.Run(name, func(t *testing.T) {
			dir, keys := t.TempDir(), t.TempDir()
			secret, public := filepath.Join(keys, "secret"), filepath.Join(keys, "public")
			args := []string{"-G", "-s", secret, "-p", public}
			if password == "" {
				args = append(args, "-W")
			}
			generate := exec.CommandContext(t.Context(), "minisign", args...)
			generate.Stdin = strings.NewReader(password + "\n" + password + "\n")
			if out, err := generate.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			artifact := filepath.Join(dir, "orch.deb")
			write(t, artifact, "a package")
			if err := writeSums(dir); err != nil {
				t.Fatal(err)
			}
			environment := map[string]string{keyVariable: secret, passwordVariable: password}
			key, err := signingKey(func(name string) string { return environment[name] })
			if err != nil {
				t.Fatal(err)
			}
			if err := signSums(dir, key, source{version: "v1.2.3", date: time.Unix(1_800_000_000, 0)}); err != nil {
				t.Fatal(err)
			}

			check := func(name string, args ...string) error {
				cmd := exec.CommandContext(t.Context(), name, args...)
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				t.Logf("%s: %s", name, out)
				return err
			}
			verify := func() error { return check("minisign", "-Vm", sumsName, "-p", public) }
			sums := func() error { return check("sha256sum", "--check", "--strict", sumsName) }
			if err := verify(); err != nil {
				t.Error(err)
			}
			if err := sums(); err != nil {
				t.Error(err)
			}
			write(t, artifact, "another package")
			if sums() == nil {
				t.Error("sha256sum accepts a changed artifact")
			}
			if err := writeSums(dir); err != nil {
				t.Fatal(err)
			}
			if verify() == nil {
				t.Error("minisign accepts changed checksums")
			}
		})
	}
}

// TestSigningKey: a wrong password is an error, which does not show it; no key is none.
func TestSigningKey(t *testing.T) {
	need(t, "minisign")
	file := filepath.Join(t.TempDir(), "secret")
	generate := exec.CommandContext(t.Context(), "minisign", "-G", "-s", file, "-p", file+".pub")
	generate.Stdin = strings.NewReader("right\nright\n")
	if out, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, err := signingKey(func(name string) string {
		return map[string]string{keyVariable: file, passwordVariable: "wrong-password"}[name]
	})
	if err == nil || strings.Contains(err.Error(), "wrong-password") {
		t.Errorf("with a wrong password: %v", err)
	}
	key, err := signingKey(func(string) string { return "" })
	if key != nil || err != nil {
		t.Errorf("without a key: %v, %v", key, err)
	}
}

// need skips the test if a program is missing; in CI it fails.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil && os.Getenv("CI") == "" {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
