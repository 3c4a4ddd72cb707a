//go:build unix

package evidence

import (
	"os"
	"os/signal"
	"syscall"
)

// notifyContinued delivers SIGCONT: the proof that the process was stopped.
func notifyContinued(to chan os.Signal) (stop func()) {
	signal.Notify(to, syscall.SIGCONT)
	return func() { signal.Stop(to) }
}
