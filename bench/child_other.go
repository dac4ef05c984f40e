//go:build !linux

package main

import (
	"syscall"
	"time"
)

// Neither is ever used: there is no development stack on this system.

func childAttributes() *syscall.SysProcAttr { return nil }

func sleepUntil(due time.Time) { time.Sleep(time.Until(due)) }
