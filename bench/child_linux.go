package main

import "syscall"

// childAttributes keep Ctrl-C in the terminal from the child processes, which are
// ended in order, and end them should this process be killed.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
