package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/ops"
)

// listenOps opens the operators' listener; nil: there is none, because it is off, or because
// the default address is in use and nobody relies on it.
func listenOps(ctx context.Context, cfg *config.Config, log hclog.Logger) (*ops.Listener, error) {
	addr, required := cfg.Ops()
	if addr == "" {
		return nil, nil
	}
	l, err := ops.Listen(ctx, addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && !required:
		log.Warn("the default address of the listener for operators is in use, so this replica serves no metrics and no profiles: set ORCH_OPS_ADDR to a free address, or to off", "addr", addr)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("ORCH_OPS_ADDR: %w", err)
	}
	if bound, ok := l.Addr().(*net.TCPAddr); ok && !bound.IP.IsLoopback() {
		log.Warn("the listener for operators can be reached from other machines, and does not encrypt the admin key: allow only those that need it (firewall), or set ORCH_OPS_ADDR to a loopback address", "addr", bound.String())
	}
	return l, nil
}

// OpsAddr returns the address of the operators' listener, or "" if there is none.
func (s *Service) OpsAddr() string {
	if s.ops == nil {
		return ""
	}
	return s.ops.Addr().String()
}

// collect tells the metrics what to ask at each scrape.
func (s *Service) collect() {
	sources := ops.Sources{Scheduler: s.Scheduler, Server: s.Server, Token: s.vault, Tokens: s.tokens, Certificates: s.files}
	for _, l := range s.links {
		sources.Stores = append(sources.Stores, l)
	}
	s.metrics.Collect(sources)
}
