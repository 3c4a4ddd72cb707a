package connect

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// echoOff stops a terminal from showing what is typed. restore is nil if r is no terminal.
func echoOff(r io.Reader) (restore func(), err error) {
	f, ok := r.(*os.File)
	if !ok {
		return nil, nil
	}
	mode, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, nil // no terminal
	}
	quiet := *mode
	quiet.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &quiet); err != nil {
		return nil, fmt.Errorf("cannot turn the terminal's echo off: %w", err)
	}
	return func() {
		_ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, mode) // if the terminal is gone, so is its echo
	}, nil
}
