package fault

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// generous bounds every wait for what has to happen; short is how long is waited for what must not.
const (
	generous = 30 * time.Second
	short    = 50 * time.Millisecond
)

// layer makes one that was told s, and what tells it more.
func layer(t *testing.T, s State) (l *Layer, tell func(State)) {
	t.Helper()
	in, out := io.Pipe()
	t.Cleanup(func() { out.Close() })
	first := make(chan error, 1)
	go func() { first <- Tell(out, s) }()
	l, err := Attach(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	ended := make(chan bool)
	go func() { l.Follow(); close(ended) }()
	t.Cleanup(func() { out.Close(); <-ended })
	return l, func(s State) {
		t.Helper()
		_, changed := l.get()
		if err := Tell(out, s); err != nil {
			t.Fatal(err)
		}
		<-changed
	}
}

// ends tells whether a call that was started comes back within the time.
func ends(came <-chan error, within time.Duration) bool {
	select {
	case <-came:
		return true
	case <-time.After(within):
		return false
	}
}

func start(call func() error) <-chan error {
	came := make(chan error, 1)
	go func() { came <- call() }()
	return came
}

// A member of belay dev is not started without a word about what is broken.
func TestAttach(t *testing.T) {
	for _, told := range []string{"", "{", "nonsense\n", `{"log":{}}`} {
		if _, err := Attach(strings.NewReader(told)); err == nil {
			t.Errorf("%q is taken for a state", told)
		}
	}
	var b bytes.Buffer
	if err := Tell(&b, State{Log: Disk{Stall: true}}); err != nil {
		t.Fatal(err)
	}
	l, err := Attach(&b)
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := l.get(); !s.Log.Stall || s.Store.Stall {
		t.Errorf("%+v", s)
	}
}

func TestDisks(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "member", "log")
	l, tell := layer(t, State{})
	fs := l.FS(vfs.Default, log)
	if err := fs.MkdirAll(log, 0o700); err != nil {
		t.Fatal(err)
	}
	create := func(name string) vfs.File {
		t.Helper()
		f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	ofLog, ofStore := create(filepath.Join(log, "segment")), create(filepath.Join(dir, "member", "logs-of-another-kind"))
	syncs := map[string]func(vfs.File) error{
		"Sync": vfs.File.Sync, "SyncData": vfs.File.SyncData, "SyncTo": func(f vfs.File) error { _, err := f.SyncTo(1); return err },
	}
	for name, sync := range syncs {
		tell(State{Log: Disk{Stall: true}})
		if err := sync(ofStore); err != nil {
			t.Errorf("%s of the store beside a log that stalls: %v", name, err)
		}
		if _, err := ofLog.Write([]byte("x")); err != nil {
			t.Errorf("a write to a disk that stalls: %v", err)
		}
		came := start(func() error { return sync(ofLog) })
		if ends(came, short) {
			t.Errorf("%s of a disk that stalls came back", name)
		}
		tell(State{})
		if !ends(came, generous) {
			t.Errorf("%s does not come back after the stall", name)
		}
		tell(State{Store: Disk{Delay: short}})
		began := time.Now()
		if err := sync(ofStore); err != nil || time.Since(began) < short {
			t.Errorf("%s with a delay: %v after %s", name, err, time.Since(began))
		}
		tell(State{Store: Disk{Delay: time.Hour}})
		came = start(func() error { return sync(ofStore) })
		if ends(came, short) {
			t.Errorf("%s with a long delay came back", name)
		}
		tell(State{})
		if !ends(came, generous) {
			t.Errorf("%s does not come back when the delay is over", name)
		}
	}

	// Full: what is there may be written again, nothing grows.
	data := make([]byte, 1<<16)
	if _, err := ofLog.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := ofLog.Sync(); err != nil {
		t.Fatal(err)
	}
	tell(State{Log: Disk{Full: true}})
	if _, err := ofLog.WriteAt(data, 0); err != nil {
		t.Errorf("writing over what is there: %v", err)
	}
	for what, err := range map[string]error{
		"append":      second(ofLog.Write(data)),
		"write":       second(ofLog.WriteAt(data, 1<<30)),
		"preallocate": ofLog.Preallocate(0, 1<<30),
	} {
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("%s on a full disk: %v", what, err)
		}
	}
	if _, err := ofStore.Write(data); err != nil {
		t.Errorf("the other disk is not full: %v", err)
	}
	if u, err := fs.GetDiskUsage(log); err != nil || u.AvailBytes != 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if u, err := fs.GetDiskUsage(dir); err != nil || u.AvailBytes == 0 {
		t.Errorf("%+v, %v", u, err)
	}
	tell(State{})
	if _, err := ofLog.Write(data); err != nil {
		t.Error(err)
	}
	if vfs.Root(fs) != vfs.Root(vfs.Default) {
		t.Error("what is below it is not found")
	}
}

func second(_ int, err error) error { return err }

// TestLink says something over a link in each state.
func TestLink(t *testing.T) {
	there, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	address := there.Addr().String()
	over := func(l Link) State {
		return State{Links: map[string]Link{address: l, "127.0.0.1:1": {Out: Way{Cut: true}}}}
	}
	l, tell := layer(t, State{})
	dial := l.Dialer((&net.Dialer{}).DialContext)
	connect := func() (near, far net.Conn) {
		t.Helper()
		near, err := dial(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if far, err = there.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { near.Close(); far.Close() })
		return near, far
	}
	say := func(to net.Conn, text string) {
		t.Helper()
		if _, err := io.WriteString(to, text); err != nil {
			t.Fatal(err)
		}
	}
	hears := func(at net.Conn, text string, within time.Duration) bool {
		t.Helper()
		if err := at.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, len(text))
		n, err := io.ReadFull(at, buf)
		if err == nil && string(buf) != text || err != nil && n > 0 {
			t.Fatalf("%q came, not %q", buf[:n], text)
		}
		if timeout := net.Error(nil); err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
			t.Fatalf("not a timeout: %v", err)
		}
		return err == nil
	}

	near, far := connect()
	if near.RemoteAddr().String() != address || near.LocalAddr().String() != far.RemoteAddr().String() {
		t.Errorf("from %s to %s", near.LocalAddr(), near.RemoteAddr())
	}
	say(near, "one")
	say(far, "two")
	if !hears(far, "one", generous) || !hears(near, "two", generous) {
		t.Fatal("a link that is well delivers nothing")
	}

	tell(over(Link{Out: Way{Cut: true}}))
	say(near, "three")
	say(far, "four")
	if !hears(near, "four", generous) {
		t.Error("the other way is cut, too")
	}
	if hears(far, "three", short) {
		t.Error("a way that is cut delivers")
	}
	// A new connection comes about when both ways do.
	ctx, cancel := context.WithTimeout(t.Context(), short)
	_, err = dial(ctx, "tcp", address)
	cancel()
	if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() || !strings.Contains(err.Error(), address) {
		t.Errorf("dialling over a cut: %v", err)
	}
	tell(over(Link{}))
	if !hears(far, "three", generous) {
		t.Error("what waited does not come when the link is whole again")
	}

	tell(over(Link{In: Way{Delay: 2 * short}}))
	began := time.Now()
	say(far, "five")
	if !hears(near, "five", generous) || time.Since(began) < 2*short {
		t.Errorf("after %s with a delay of %s", time.Since(began), 2*short)
	}
	tell(over(Link{Out: Way{Loss: 1}}))
	say(near, "six")
	if hears(far, "six", short) {
		t.Error("what is lost comes at once")
	}
	tell(over(Link{}))
	if !hears(far, "six", generous) {
		t.Error("what was lost does not come")
	}

	// The end of a connection, as TCP tells it.
	far.Close()
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reading from who is gone: %v", err)
	}
	if _, err := near.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("writing to who is gone: %v", err)
	}
	near.Close()
	if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing after closing: %v", err)
	}
	near, far = connect()
	near.Close()
	if err := far.SetReadDeadline(time.Now().Add(generous)); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("who is gone here is not gone there: %v", err)
	}
	there.Close()
	if _, err := dial(t.Context(), "tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
}
