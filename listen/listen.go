package listen

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"syscall"

	"go.etcd.io/etcd/client/pkg/v3/transport"
)

// SocketOptions are those of every TCP socket listened on.
type SocketOptions = transport.SocketOpts

// Address is the network and address to listen on for a URL: a unix URL's host
// and path together name its file.
func Address(u url.URL) (network, address string) {
	if u.Scheme == "unix" || u.Scheme == "unixs" {
		return "unix", u.Host + u.Path
	}
	return "tcp", u.Host
}

// Secure says whether a URL asks for TLS.
func Secure(u url.URL) bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// Open listens on a URL, without TLS. TCP connections are kept alive by the
// kernel. A socket file that nobody serves any more is replaced; flag names the
// flag that the URL came from.
func Open(u url.URL, flag string, opts *SocketOptions) (net.Listener, error) {
	network, address := Address(u)
	var l net.Listener
	var err error
	if network == "unix" {
		if err = removeStale(address); err == nil {
			l, err = transport.NewUnixListener(address)
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

// removeStale refuses a socket file that somebody serves, which etcd would take
// away from under them, and anything that is not a socket.
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

// MaxPending is FrontOptions.MaxPending for a limit of file descriptors: half of
// the connections that Limit admits, so that silent ones never keep out the rest.
func MaxPending(descriptors uint64) int {
	if descriptors == 0 {
		return defaultMaxPending
	}
	return int(min(defaultMaxPending, max(1, (descriptors-min(descriptors, ReservedDescriptors))/2)))
}

// ReservedDescriptors are kept back from clients for the member's own files.
const ReservedDescriptors = 150

// ErrFewDescriptors leaves nothing for clients.
var ErrFewDescriptors = fmt.Errorf("the process may open too few files; raise the limit (ulimit -n, LimitNOFILE) above %d", ReservedDescriptors)

// Limit bounds the open connections of a listener by the limit of file
// descriptors, as etcd does: beyond it clients wait to be accepted. A
// descriptors of 0 means unknown, no bound.
func Limit(l net.Listener, descriptors uint64) (net.Listener, error) {
	switch {
	case descriptors == 0:
		return l, nil
	case descriptors <= ReservedDescriptors:
		return nil, ErrFewDescriptors
	}
	const plenty = 1 << 20 // the limiter holds a slot for each
	return transport.LimitListener(l, int(min(descriptors-ReservedDescriptors, plenty))), nil
}
