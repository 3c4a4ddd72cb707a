//go:build unix

package dev

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminalColumns is the width of a terminal, 0 if it does not report it; ok is false if f is no
// terminal.
func terminalColumns(f *os.File) (n int, ok bool) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	return int(size.Col), true
}

// mayRead keeps the terminal from stopping us when we read from it in the background: the read
// fails instead.
func mayRead() { signal.Ignore(syscall.SIGTTIN) }

// freeze stops a process as it is, and thaw lets it go on.
func freeze(p *os.Process) error { return p.Signal(unix.SIGSTOP) }

func thaw(p *os.Process) error { return p.Signal(unix.SIGCONT) }
