package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"aead.dev/minisign"
)

// sumsName is the file with the checksums of all artifacts, which is what is signed.
const sumsName = "SHA256SUMS"

// keyVariable names the file of the secret key of minisign, passwordVariable the password of
// that file.
const (
	keyVariable      = "ORCH_RELEASE_MINISIGN_KEY"
	passwordVariable = "ORCH_RELEASE_MINISIGN_PASSWORD" //nolint:gosec // a name, not a password
)

// writeSums writes the checksums of all files in dir, as sha256sum does.
func writeSums(dir string) error {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return err
	}
	var sums bytes.Buffer
	for _, e := range entries {
		if e.Name() == sumsName || e.Name() == ownName {
			continue
		}
		sum, err := fileSum(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%s  %s\n", sum, e.Name())
	}
	return create(filepath.Join(dir, sumsName), func(w io.Writer) error { _, err := sums.WriteTo(w); return err })
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// signingKey reads the key with which releases are signed; nil: there is none.
func signingKey(getenv func(string) string) (*minisign.PrivateKey, error) {
	file := getenv(keyVariable)
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyVariable, err)
	}
	var key minisign.PrivateKey
	if minisign.IsEncrypted(text) {
		key, err = minisign.DecryptKey(getenv(passwordVariable), text)
	} else {
		err = key.UnmarshalText(text)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: the key cannot be read, or %s is not its password: %w", keyVariable, passwordVariable, err)
	}
	return &key, nil
}

// signSums signs the checksums. The trusted comment has the commit's date, not the time, so
// that a signature can be reproduced, too.
func signSums(dir string, key *minisign.PrivateKey, s source) error {
	sums, err := os.ReadFile(filepath.Join(dir, sumsName))
	if err != nil {
		return err
	}
	trusted := fmt.Sprintf("timestamp:%d\tfile:%s\torch %s", s.date.Unix(), sumsName, s.version)
	signature := minisign.SignWithComments(*key, sums, trusted, "signature of orch "+s.version)
	return create(filepath.Join(dir, sumsName+".minisig"), func(w io.Writer) error {
		_, err := io.Copy(w, strings.NewReader(string(signature)))
		return err
	})
}
