package archive

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/septemberai/orch/brain"
)

// Key encrypts one archive. Two archives of the same tree with the same key are equal byte
// by byte, so a worker that starts again can continue an upload. A key must never encrypt
// two different archives: whoever uses one again compares what it sends with what it sent.
// It is as secret as the tree, and is kept where the tree is.
type Key struct {
	// Header is the beginning of the encrypted file: age's header and the nonce.
	Header []byte `json:"header"`
	// Secret is age's file key.
	Secret []byte `json:"secret"`
}

const (
	nonceSize = 16
	chunkSize = 64 << 10
)

// NewKey makes a new key, which the holder of the recipient's identity can derive from the
// encrypted file.
func NewKey(recipient string) (Key, error) {
	r, err := age.ParseX25519Recipient(recipient)
	if err != nil {
		return Key{}, brain.Errorf(brain.BadOrder, "the recipient is no public key of age")
	}
	var header bytes.Buffer
	w := wiretap{to: r}
	// Encrypt writes the header and the nonce at once, and the first chunk when it has one.
	if _, err := age.Encrypt(&header, &w); err != nil {
		return Key{}, err
	}
	return Key{Header: header.Bytes(), Secret: w.fileKey}, nil
}

// wiretap keeps the file key that age makes.
type wiretap struct {
	to      age.Recipient
	fileKey []byte
}

func (w *wiretap) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	w.fileKey = bytes.Clone(fileKey)
	return w.to.Wrap(fileKey)
}

// sealer encrypts as age does (https://age-encryption.org/v1, "Payload"). The package age
// has no way to encrypt with a key that exists already.
type sealer struct {
	to      io.Writer
	aead    cipher.AEAD
	counter uint64
	plain   []byte // of the chunk that is not written yet
	out     []byte
	err     error
}

// newSealer writes the header to w.
func newSealer(k Key, w io.Writer) (*sealer, error) {
	if len(k.Header) <= nonceSize || len(k.Secret) == 0 {
		return nil, errors.New("the key is empty")
	}
	nonce := k.Header[len(k.Header)-nonceSize:]
	payload, err := hkdf.Key(sha256.New, k.Secret, nonce, "payload", chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.New(payload)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(k.Header); err != nil {
		return nil, err
	}
	return &sealer{to: w, aead: aead, plain: make([]byte, 0, chunkSize), out: make([]byte, 0, chunkSize+aead.Overhead())}, nil
}

// Write implements io.Writer. A full chunk is written when more follows, because the last
// one is marked.
func (s *sealer) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if len(s.plain) == chunkSize {
			s.flush(false)
		}
		if s.err != nil {
			return 0, s.err
		}
		n := copy(s.plain[len(s.plain):chunkSize], p)
		s.plain, p = s.plain[:len(s.plain)+n], p[n:]
	}
	return total, nil
}

// Close writes the last chunk. It does not close what it writes to.
func (s *sealer) Close() error {
	if s.err == nil {
		s.flush(true)
	}
	err := s.err
	s.err = errors.Join(err, errors.New("closed"))
	return err
}

func (s *sealer) flush(last bool) {
	var nonce [chacha20poly1305.NonceSize]byte // 11 bytes of counter, 1 that marks the last
	binary.BigEndian.PutUint64(nonce[3:11], s.counter)
	if last {
		nonce[11] = 1
	}
	s.counter++
	s.out = s.aead.Seal(s.out[:0], nonce[:], s.plain, nil)
	s.plain = s.plain[:0]
	_, s.err = s.to.Write(s.out)
}
