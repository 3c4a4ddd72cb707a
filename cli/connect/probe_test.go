package connect

import (
	"errors"
	"net"
	"strconv"
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

// TestForms: what is no endpoint is told how to write it, and nobody is told to start a server there.
func TestForms(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string]string{
		"":                     "is empty",
		"myhost":               "has no port: give it as myhost:2379",
		"http://myhost":        "has no port: give it as http://myhost:2379",
		"https://[::1]":        "has no port: give it as https://[::1]:2379",
		"::1:22001":            "without brackets: give it as [::1]:22001",
		"::1:2379":             "without brackets: give it as [::1]:2379 or [::1:2379]:2379",
		"fe80::1":              "without brackets: give it as [fe80::1]:2379",
		"ftp://127.0.0.1:2379": "has the scheme ftp: give it as http://127.0.0.1:2379",
		"a:b:c":                "is not host and port",
	} {
		err := Probe(endpoint, nil)
		if _, ok := errors.AsType[*FormError](err); !ok || !strings.Contains(err.Error(), want) || !strings.Contains(Hint(endpoint, err), strconv.Quote(endpoint)) {
			t.Errorf("%q: %v, want %q", endpoint, err, want)
		}
	}
	for _, endpoint := range []string{"127.0.0.1:1", "http://[::1]:1", "https://localhost:1", ":1", "unix:/none", "unixs://none:1"} {
		if _, ok := errors.AsType[*FormError](Probe(endpoint, nil)); ok {
			t.Errorf("%q is taken for none", endpoint)
		}
	}
}
