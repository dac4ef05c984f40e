package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// stored is what the stores hold, in bytes.
type stored struct {
	// Rows and Keys are the values and the names of all keys of the service in
	// Consul, by what they are.
	Rows map[string]keySize `json:"consul_keys"`
	// ConsulSnapshot and NomadSnapshot are compressed; Audit is the SQLite file.
	ConsulSnapshot int64 `json:"consul_snapshot"`
	NomadSnapshot  int64 `json:"nomad_snapshot"`
	Audit          int64 `json:"audit_file"`
}

// keySize is how many keys there are of a kind, and their bytes.
type keySize struct {
	N     int `json:"n"`
	Bytes int `json:"bytes"`
}

// stored reads how much there is.
func (r *curveRig) stored(ctx context.Context) (s stored, err error) {
	c, err := consul.NewClient(&consul.Config{Address: r.stack.ConsulAddr})
	if err != nil {
		return s, err
	}
	pairs, _, err := c.KV().List(curvePrefix, (&consul.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return s, err
	}
	s.Rows = map[string]keySize{}
	for _, p := range pairs {
		kind, _, _ := strings.Cut(p.Key[len(curvePrefix):], "/")
		k := s.Rows[kind]
		k.N, k.Bytes = k.N+1, k.Bytes+len(p.Key)+len(p.Value)
		s.Rows[kind] = k
	}
	snapshot, _, err := c.Snapshot().Save((&consul.QueryOptions{}).WithContext(ctx))
	if s.ConsulSnapshot, err = sizeOf(snapshot, err); err != nil {
		return s, fmt.Errorf("snapshot of Consul: %w", err)
	}
	n, err := nomad.NewClient(&nomad.Config{Address: r.stack.NomadAddr})
	if err != nil {
		return s, err
	}
	snapshot, err = n.Operator().Snapshot((&nomad.QueryOptions{}).WithContext(ctx))
	if s.NomadSnapshot, err = sizeOf(snapshot, err); err != nil {
		return s, fmt.Errorf("snapshot of Nomad: %w", err)
	}
	for _, file := range []string{r.auditFile(curvePrefix), r.auditFile(curvePrefix) + "-wal"} {
		if info, err := os.Stat(file); err == nil {
			s.Audit += info.Size()
		}
	}
	return s, nil
}

func sizeOf(stream io.ReadCloser, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, stream)
	if cerr := stream.Close(); err == nil {
		err = cerr
	}
	return n, err
}
