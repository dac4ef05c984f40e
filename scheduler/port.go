package scheduler

import (
	"context"
	"net"
	"time"

	"github.com/septemberai/orch/engine"
)

const (
	// stepAnotherPort ends what there is of a boot whose port is taken, and registers
	// the engine again.
	stepAnotherPort = "another-port"
	// maxPorts is how many ports an operation tries. Nomad draws them by chance, and
	// knows nothing of what listens on a node that it did not start.
	maxPorts = 10
	// listensWithin bounds the question whether somebody listens.
	listensWithin = time.Second
)

// listens says whether something takes connections at an address.
func listens(ctx context.Context, addr string) bool {
	d := net.Dialer{Timeout: listensWithin}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// mayChangePort turns to another port after errPortTaken, where the operation may
// start a process and has not tried too often.
func (o *operation) mayChangePort(cause error) error {
	kind := o.row.Op.Kind
	if kind != engine.OpProvision && kind != engine.OpStart && kind != engine.OpRestart || o.ports >= maxPorts {
		return cause
	}
	o.ports++
	o.log.Warn("another process listens on the port that Nomad gave the engine; it gets another one", "url", o.row.URL, "node_id", o.row.NodeID)
	o.row.Op.Step = stepAnotherPort
	return errDetour
}

// anotherPort makes room for the next allocation of a boot, which Nomad gives another
// port.
func (o *operation) anotherPort(ctx context.Context) error {
	if err := o.quiesce(ctx); err != nil {
		return err
	}
	if err := o.awaitGone(ctx); err != nil {
		return err
	}
	o.row.AllocID, o.row.URL = "", ""
	return nil
}
