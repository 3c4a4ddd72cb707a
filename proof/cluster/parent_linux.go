package cluster

import (
	"os/exec"
	"syscall"
)

// setParentDeath makes the kernel kill the member when this process dies, however it dies.
func setParentDeath(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
