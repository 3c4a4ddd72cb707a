package cluster

import (
	"os/exec"
	"syscall"
)

// setParentDeath has the kernel kill the member when we die, however we die.
func setParentDeath(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
