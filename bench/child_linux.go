package main

import (
	"syscall"
	"time"
)

// childAttributes keep Ctrl-C in the terminal from the child processes, which are
// ended in order, and end them should this process be killed.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// sleepUntil sleeps by the kernel's own clock: Go's timers are up to a
// millisecond late in a process that has nothing else to do.
func sleepUntil(due time.Time) {
	if wait := time.Until(due); wait > 0 {
		ts := syscall.NsecToTimespec(int64(wait))
		_ = syscall.Nanosleep(&ts, nil) // a signal makes one call early
	}
}
