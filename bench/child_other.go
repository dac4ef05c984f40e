//go:build !linux

package main

import "syscall"

// childAttributes are never used: there is no development stack on this system.
func childAttributes() *syscall.SysProcAttr { return nil }
