package interrupt

import (
	"syscall"
	"unsafe"
)

// forget gives the signal its default effect, in the kernel.
//
// signal.Reset would leave the Go runtime's handler in place, which then ends the process by raising
// the signal again with the signal unblocked. Where the same signal comes many times (a supervisor
// that sends it to the process and to its group, an impatient operator), each interrupts the
// handler of the one before, until the handler's stack is full: the process ends by SIGSEGV, and a
// member that was stopped in order looks like one that crashed.
func forget(sig syscall.Signal) {
	// A kernel's sigaction of zeros is SIG_DFL without flags and with an empty mask, on every
	// architecture; 8 bytes of signal set are what all but mips have.
	var zero [64]byte
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&zero)), 0, 8, 0, 0)
}
