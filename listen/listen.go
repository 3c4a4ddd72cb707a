package listen

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync"
	"syscall"

	"go.etcd.io/etcd/client/pkg/v3/transport"
)

// SocketOptions apply to every TCP socket that is listened on.
type SocketOptions = transport.SocketOpts

// Address is the network and address to listen on for a URL: a unix URL's host
// and path together name its file.
func Address(u url.URL) (network, address string) {
	if u.Scheme == "unix" || u.Scheme == "unixs" {
		return "unix", u.Host + u.Path
	}
	return "tcp", u.Host
}

// Secure reports whether a URL asks for TLS.
func Secure(u url.URL) bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// Open listens on a URL, without TLS. TCP connections are kept alive by the kernel. A stale socket
// file is replaced; flag is the flag that the URL came from, for errors.
func Open(u url.URL, flag string, opts *SocketOptions) (net.Listener, error) {
	network, address := Address(u)
	var l net.Listener
	var err error
	if network == "unix" {
		if err = removeStale(address); err == nil {
			if l, err = transport.NewUnixListener(address); err == nil {
				l = &closedOnce{Listener: l}
			}
		}
	} else {
		l, err = transport.NewListenerWithOpts(address, "http", transport.WithSocketOpts(opts))
	}
	if err == nil {
		return l, nil
	}
	advice := "choose another address with " + flag
	if errors.Is(err, syscall.EADDRINUSE) {
		advice = "another program, perhaps another member, listens there; stop it or " + advice
	}
	return nil, fmt.Errorf("cannot listen on %s: %w; %s", u.String(), err, advice)
}

// closedOnce is the listener of a socket file. Its Close removes the file, so a second one, as
// http.Server makes when its loop ends, would remove that of a listener opened since at the same path.
type closedOnce struct {
	net.Listener
	once sync.Once
	err  error
}

func (l *closedOnce) Close() error {
	l.once.Do(func() { l.err = l.Listener.Close() })
	return l.err
}

// removeStale refuses a socket file that another process serves, which etcd would take over, and
// anything that is not a socket.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil // nobody there: NewUnixListener removes it
	}
	c.Close()
	return &net.OpError{Op: "listen", Net: "unix", Addr: &net.UnixAddr{Name: path, Net: "unix"}, Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
}

// MaxPending is FrontOptions.MaxPending for a bound on open connections: half of it, so that silent
// connections never keep out the rest.
func MaxPending(connections int) int { return min(defaultMaxPending, max(1, connections/2)) }
