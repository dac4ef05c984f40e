package scheduler

import (
	"context"
	"net"
	"time"

	"github.com/septemberai/orch/scheduler/operation"
)

const (
	// stepAnotherPort ends a boot whose port is in use by another process, and registers
	// the engine again.
	stepAnotherPort = "another-port"
	// maxPorts is how many ports an operation tries. Nomad chooses them randomly, and does
	// not know which ports other processes use.
	maxPorts = 10
	// listensWithin limits the check whether another process listens.
	listensWithin = time.Second
)

// listens reports whether a process accepts connections at an address.
func listens(ctx context.Context, addr string) bool {
	d := net.Dialer{Timeout: listensWithin}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// mayChangePort continues with another port after errPortTaken, if the operation may start
// a process and has not tried too often.
func (o *work) mayChangePort(cause error) error {
	kind := o.Row.Op.Kind
	if !starts(kind) || o.ports >= maxPorts {
		return cause
	}
	o.ports++
	o.Log.Warn("another process listens on the port that Nomad gave the engine; it gets another one", "url", o.Row.URL, "node_id", o.Row.NodeID)
	o.Row.Op.Step = stepAnotherPort
	return operation.ErrDetour
}

// anotherPort ends the allocation of a boot, so that Nomad gives the next one another port.
func (o *work) anotherPort(ctx context.Context) error {
	if err := o.quiesce(ctx); err != nil {
		return err
	}
	if err := o.awaitGone(ctx); err != nil {
		return err
	}
	o.Row.AllocID, o.Row.URL = "", ""
	return nil
}
