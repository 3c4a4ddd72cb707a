//go:build unix && !linux

package interrupt

import (
	"os/signal"
	"syscall"
)

// forget gives the signal its default effect.
func forget(sig syscall.Signal) { signal.Reset(sig) }
