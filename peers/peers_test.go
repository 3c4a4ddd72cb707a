package peers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

func client(t *testing.T) *http.Client {
	rt := NewRoundTripper(Options{Reuse: true})
	t.Cleanup(rt.CloseIdleConnections)
	return NewClient(rt)
}

// Each URL in turn until an answer is taken; the last error is told.
func TestAsk(t *testing.T) {
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("A")+" "+string(body))
		if r.URL.Path == "/long" {
			_, _ = io.WriteString(w, strings.Repeat("x", 11))
			return
		}
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, " no\n")
	}))
	defer srv.Close()
	c := client(t)
	q := Question{Method: http.MethodPost, Path: "/q", Header: http.Header{"A": {"b"}}, Body: []byte("body")}
	n := 0
	err := Ask(t.Context(), c, []string{"http://127.0.0.1:1", srv.URL, srv.URL + "/"}, q, func(a Answer) error {
		if n++; n == 1 {
			return errors.New("not this one")
		}
		return a.OK()
	})
	if want := srv.URL + "/q answered 418 I'm a teapot: no"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if got := strings.Join(asked, "; "); got != "POST /q b body; POST /q b body" {
		t.Errorf("asked: %s", got)
	}
	if err := Ask(t.Context(), c, nil, q, nil); !errors.Is(err, ErrNoURL) {
		t.Errorf("without a URL: %v", err)
	}
	if a, err := At(t.Context(), c, srv.URL, Question{Path: "/long", MaxAnswer: 10}); err == nil {
		t.Errorf("an answer that is too long was taken: %q", a.Body)
	}
	if a, err := At(t.Context(), c, srv.URL, Question{Path: "/long", MaxAnswer: 11}); err != nil || len(a.Body) != 11 {
		t.Errorf("%q, %v", a.Body, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := At(ctx, c, srv.URL, q); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// What answers does not choose who is asked.
func TestNoRedirects(t *testing.T) {
	srv := httptest.NewServer(http.RedirectHandler("http://127.0.0.1:1/", http.StatusFound))
	defer srv.Close()
	if a, err := At(t.Context(), client(t), srv.URL, Question{Path: "/"}); err != nil || a.Status != http.StatusFound {
		t.Errorf("%d, %v", a.Status, err)
	}
}

// Every URL that a member may have is asked alike, over a connection of its own and over one that
// is kept. etcd's socket URLs have a name and a port, which are the file's name, or a name alone.
func TestEachKindOfURL(t *testing.T) {
	dir, err := os.MkdirTemp("", "peers") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Chdir(dir)
	certs := httptest.NewTLSServer(nil)
	defer certs.Close()
	trusted := x509.NewCertPool()
	trusted.AddCert(certs.Certificate())
	clientTLS := &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12}
	for _, c := range []struct {
		network, address string // where it listens
		secure           bool
		url              string // %s: the address
	}{
		{"tcp", "127.0.0.1:0", false, "http://%s"},
		{"tcp", "127.0.0.1:0", false, "http://%s/"},
		{"tcp", "127.0.0.1:0", true, "https://%s"},
		{"unix", "localhost:20001", false, "unix://%s"},
		{"unix", "localhost", false, "unix://%s"},
		{"unix", "127.0.0.1:20002", true, "unixs://%s"},
		{"unix", "127.0.0.1", true, "unixs://%s"},
	} {
		t.Run(c.url+" at "+c.address, func(t *testing.T) {
			l, err := net.Listen(c.network, c.address)
			if err != nil {
				t.Fatal(err)
			}
			address := l.Addr().String()
			if c.secure {
				l = tls.NewListener(l, &tls.Config{Certificates: certs.TLS.Certificates, MinVersion: tls.VersionTLS12})
			}
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Method+" "+r.URL.Path) })}
			go srv.Serve(l)
			defer srv.Close()
			for _, reuse := range []bool{false, true} {
				rt := NewRoundTripper(Options{Reuse: reuse, TLS: func() *tls.Config { return clientTLS }})
				defer rt.CloseIdleConnections()
				for i := range 2 {
					err := Ask(t.Context(), NewClient(rt), []string{fmt.Sprintf(c.url, address)}, Question{Path: PathMembers}, func(a Answer) error {
						if string(a.Body) != "GET /members" || a.Fresh != (i == 0 || !reuse) {
							return fmt.Errorf("answer %q, fresh %v", a.Body, a.Fresh)
						}
						return a.OK()
					})
					if err != nil {
						t.Errorf("question %d, reuse %v: %v", i, reuse, err)
					}
				}
			}
		})
	}
}
