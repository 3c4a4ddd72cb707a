package embed

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill the member when the test dies.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
