package check

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenReusing listens with SO_REUSEPORT.
func listenReusing(ctx context.Context, address string) (net.Listener, error) {
	l := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		if controlErr != nil {
			return controlErr
		}
		return err
	}}
	return l.Listen(ctx, "tcp", address)
}
