//go:build !unix

package dev

import (
	"errors"
	"os"
)

// terminalColumns recognises character devices, but no width.
func terminalColumns(f *os.File) (n int, ok bool) {
	info, err := f.Stat()
	return 0, err == nil && info.Mode()&os.ModeCharDevice != 0
}

// mayRead: reading in the background stops nobody here.
func mayRead() {}

// freeze: no process can be stopped and go on here.
func freeze(*os.Process) error { return errors.New("this system cannot pause a process") }

func thaw(*os.Process) error { return nil }
