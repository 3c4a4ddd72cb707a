//go:build !linux

package connect

import "io"

// echoOff supports only Linux's terminals; elsewhere a password is visible while it is typed.
func echoOff(io.Reader) (restore func(), err error) { return nil, nil }
