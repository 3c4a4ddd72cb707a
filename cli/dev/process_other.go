//go:build !linux

package dev

import "syscall"

// detached can do nothing here: Ctrl-C reaches the members directly too, and they all stop at once.
func detached() *syscall.SysProcAttr { return nil }
