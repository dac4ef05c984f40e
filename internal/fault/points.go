//go:build faultpoints

package fault

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

type armed struct {
	point  string
	signal syscall.Signal
}

var active atomic.Pointer[armed]

func init() {
	if err := arm(os.Getenv(Variable)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

// arm arms the point that spec, the value of [Variable], names; an empty spec
// arms none.
func arm(spec string) error {
	if spec == "" {
		return nil
	}
	how, point, ok := strings.Cut(spec, " ")
	signals := map[string]syscall.Signal{"kill": syscall.SIGKILL, "pause": syscall.SIGSTOP}
	signal, known := signals[how]
	if !ok || !known || point == "" {
		return fmt.Errorf("%s is %q; it must be \"kill POINT\" or \"pause POINT\"", Variable, spec)
	}
	active.Store(&armed{point, signal})
	return nil
}

// settle is given to the kernel to stop all threads: the one that sends the
// signal to its own process may run on for a moment.
const settle = 50 * time.Millisecond

// Hit is where a point is: it does what is armed for it, once.
func Hit(point string) {
	a := active.Load()
	if a == nil || a.point != point || !active.CompareAndSwap(a, nil) {
		return
	}
	// It can fail only for a process or a signal that do not exist.
	_ = syscall.Kill(syscall.Getpid(), a.signal)
	time.Sleep(settle)
}
