package connect

import (
	"net"
	"strings"
	"testing"
)

// TestProbePlainServer: a server that hangs up on a TLS handshake, as an etcd without TLS does, may be
// one that wants http.
func TestProbePlainServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4<<10)) // all of the greeting, or closing would reset
			conn.Close()
		}
	}()
	address := l.Addr().String()
	if err := Probe("https://"+address, nil); err == nil || !strings.Contains(err.Error(), "if it does not speak TLS, give it as http://"+address) {
		t.Errorf("%v", err)
	}
}
