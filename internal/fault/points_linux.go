//go:build faultpoints

package fault

import (
	"fmt"
	"os"
	"runtime"
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

// arm enables the point that spec, the value of [Variable], names; an empty spec enables
// none.
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

// settle gives the kernel time to stop the other threads, which may run for a moment longer.
const settle = 50 * time.Millisecond

// Hit marks a point. It does what is set for this point, once.
func Hit(point string) {
	a := active.Load()
	if a == nil || a.point != point || !active.CompareAndSwap(a, nil) {
		return
	}
	// To this thread: one to the process is for its first thread, and if that has to wait for a
	// core, the others run on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// It can fail only if the thread or the signal does not exist.
	_, _, _ = syscall.RawSyscall(syscall.SYS_TGKILL, uintptr(syscall.Getpid()), uintptr(syscall.Gettid()), uintptr(a.signal))
	time.Sleep(settle)
}
