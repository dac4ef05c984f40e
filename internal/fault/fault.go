// Package fault ends or pauses this process at a named point, so that a test can
// show that nothing is lost between any two steps.
//
// The points are compiled in and do nothing unless one of them is armed. Only
// tests arm one: by [Variable], which `orch server` reads once when it starts.
package fault

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Variable is the environment variable that arms a point: "kill POINT" ends the
// process there with SIGKILL, "pause POINT" stops it there with SIGSTOP, the
// first time that it comes by.
const Variable = "ORCH_FAULT"

type armed struct {
	point  string
	signal syscall.Signal
}

var active atomic.Pointer[armed]

// Arm arms the point that spec, the value of [Variable], names; an empty spec
// arms none. The error says what is wrong with spec.
func Arm(spec string) error {
	if spec == "" {
		active.Store(nil)
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
