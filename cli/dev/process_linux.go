package dev

import "syscall"

// detached puts a member in its own process group, out of reach of the terminal's Ctrl-C, and has
// the kernel stop it should we die without stopping it.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
