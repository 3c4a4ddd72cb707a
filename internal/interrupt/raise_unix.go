//go:build unix

package interrupt

import (
	"os"
	"syscall"
	"time"
)

// Raise ends the process by the signal, so that the parent sees which. It must still be caught when
// Raise is called: see forget.
func Raise(s os.Signal) {
	if sig, ok := s.(syscall.Signal); ok {
		forget(sig)
		_ = syscall.Kill(os.Getpid(), sig)
		time.Sleep(time.Second) // the signal ends us here
	}
	os.Exit(1)
}
