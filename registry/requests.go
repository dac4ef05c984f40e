package registry

import (
	"context"
	"strconv"
	"time"

	consul "github.com/hashicorp/consul/api"
)

func (s *Store) requestKey() string { return s.prefix + "reconcile-request" }

// RequestReconcile requests a full pass of the leader, whichever replica that is.
func (s *Store) RequestReconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	at := strconv.FormatInt(time.Now().UnixNano(), 10) // a different value for each request
	_, err := s.client.KV().Put(&consul.KVPair{Key: s.requestKey(), Value: []byte(at)}, (&consul.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// ReconcileRequested waits until a pass was requested after index, at most a few seconds,
// and returns the index of the last request. It returns 0 at once if there was never a
// request.
func (s *Store) ReconcileRequested(ctx context.Context, index uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait+callTimeout)
	defer cancel()
	pair, _, err := s.client.KV().Get(s.requestKey(), (&consul.QueryOptions{WaitIndex: index, WaitTime: mirrorWait}).WithContext(ctx))
	if err != nil {
		return 0, unavailable(err)
	}
	if pair == nil {
		return 0, nil
	}
	return pair.ModifyIndex, nil
}
