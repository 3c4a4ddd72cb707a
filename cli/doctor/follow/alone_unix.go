//go:build unix

package follow

import (
	"os/exec"
	"syscall"
)

// alone puts a command into a process group of its own, so that the terminal's Ctrl-C does not reach
// it, and has all of the group killed when its time is over.
func alone(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
