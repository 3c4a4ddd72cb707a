//go:build unix

package interrupt

import (
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Raise ends the process by the signal, so that the parent sees which.
func Raise(s os.Signal) {
	signal.Reset(s)
	if sig, ok := s.(syscall.Signal); ok {
		_ = syscall.Kill(os.Getpid(), sig)
		time.Sleep(time.Second) // the signal ends us here
	}
	os.Exit(1)
}
