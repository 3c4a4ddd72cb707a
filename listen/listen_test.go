package listen

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"testing"
)

// TestSocketFileOfTheNext: a listener of a socket file that is closed twice, by who opened it and by
// the http.Server whose loop ends, leaves the file of the one that was opened between the two.
func TestSocketFileOfTheNext(t *testing.T) {
	t.Parallel()
	u := url.URL{Scheme: "unix", Path: filepath.Join(t.TempDir(), "s")}
	first, err := Open(u, "--listen-peer-urls", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := Open(u, "--listen-peer-urls", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := (&http.Server{}).Serve(first); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener serves: %v", err)
	}
	c, err := net.Dial("unix", u.Path)
	if err != nil {
		t.Fatalf("the next one is not reached: %v", err)
	}
	c.Close()
}
