package inject

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

func slowfsProgram(t *testing.T) string {
	t.Helper()
	if err := Mountable(); err != nil {
		t.Skipf("no slow disk can be made here: %v", err)
	}
	program, err := BuildSlowfs(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func TestSlowfs(t *testing.T) {
	d, err := MountDisk(slowfsProgram(t), filepath.Join(t.TempDir(), "m"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	tell := func(command string) {
		t.Helper()
		if _, err := d.Tell("%s", command); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(d.Path, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	write := func() error { _, err := syscall.Pwrite(fd, []byte("0123456789"), 0); return err }

	for _, c := range []struct {
		name string
		call func() error
		kind string
	}{
		{"fdatasync", func() error { return syscall.Fdatasync(fd) }, "sync"},
		{"fsync", func() error { return syscall.Fsync(fd) }, "sync"},
		{"write", write, "write"},
		{"fallocate", func() error { return syscall.Fallocate(fd, 0, 0, 4096) }, "write"},
		{"mkdir", func() error { return os.Mkdir(filepath.Join(d.Path, time.Now().String()), 0o700) }, "meta"},
		{"fsync of the folder", func() error {
			dir, err := os.Open(d.Path)
			if err != nil {
				return err
			}
			defer dir.Close()
			return dir.Sync()
		}, "sync"},
	} {
		if err := c.call(); err != nil {
			t.Fatalf("%s without a fault: %v", c.name, err)
		}
		const wait = 50 * time.Millisecond
		tell(fmt.Sprintf("set %s delay %v", c.kind, wait))
		start := time.Now()
		if err := c.call(); err != nil || time.Since(start) < wait {
			t.Errorf("%s with a delay: %v after %v", c.name, err, time.Since(start))
		}
		tell(fmt.Sprintf("set %s fail %d", c.kind, syscall.EIO))
		if err := c.call(); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s of a failing disk: %v", c.name, err)
		}
		// Hung: it has met the fault, and comes back only with the disk.
		before, err := d.Met()
		if err != nil {
			t.Fatal(err)
		}
		tell(fmt.Sprintf("set %s hang", c.kind))
		back := make(chan error, 1)
		go func() { back <- c.call() }()
		for deadline := time.Now().Add(5 * time.Second); ; {
			if n, err := d.Met(); err != nil {
				t.Fatal(err)
			} else if n > before {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s did not get to the disk", c.name)
			}
		}
		select {
		case err := <-back:
			t.Errorf("%s of a disk that hangs came back: %v", c.name, err)
		default:
		}
		tell("clear")
		if err := <-back; err != nil {
			t.Errorf("%s after the disk was back: %v", c.name, err)
		}
	}
	if _, err := d.Tell("set sync explode"); err == nil {
		t.Error("an unknown command was taken")
	}
}

// TestRelay sends bytes through a relay as member 0 to member 1 and back.
func TestRelay(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	c, err := cluster.New(cluster.Config{Kind: cluster.Belay, Binary: "none", Size: 2, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	c.Members[1].PeerURL = "http://" + target.Addr().String()
	n, err := NewNetwork(c)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.Name(0xa, 0)
	n.Name(0xb, 1)

	client, err := net.Dial("tcp", n.listeners[1].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	const head = "GET / HTTP/1.1\r\nX-Server-From: a\r\n\r\n"
	send := func(from net.Conn, text string) {
		t.Helper()
		if _, err := io.WriteString(from, text); err != nil {
			t.Fatal(err)
		}
	}
	// receive tells whether text arrives within the time.
	receive := func(at net.Conn, text string, within time.Duration) bool {
		t.Helper()
		if err := at.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, len(text))
		_, err := io.ReadFull(at, buf)
		if err == nil && string(buf) != text {
			t.Fatalf("%q arrived, not %q", buf, text)
		}
		return err == nil
	}
	const long, short = 5 * time.Second, 50 * time.Millisecond

	send(client, head)
	if !receive(server, head, long) {
		t.Fatal("nothing arrives")
	}
	// Cut from 1 to 0: what the server says waits, what the client says does not.
	n.Set([]int{1}, []int{0}, Link{Cut: true})
	send(server, "answer")
	send(client, "more")
	if !receive(server, "more", long) {
		t.Error("a cut of the other direction cuts this one")
	}
	if receive(client, "answer", short) {
		t.Error("a cut direction delivers")
	}
	n.Set([]int{1}, []int{0}, Link{})
	if !receive(client, "answer", long) {
		t.Error("a mended link does not deliver")
	}
	n.Set([]int{0}, []int{1}, Link{Delay: 2 * short, Jitter: time.Millisecond})
	start := time.Now()
	send(client, "late")
	if !receive(server, "late", long) || time.Since(start) < 2*short {
		t.Errorf("a delay of %v: %v", 2*short, time.Since(start))
	}
	n.Set([]int{0}, []int{1}, Link{Loss: 0.999999})
	send(client, "lost")
	if receive(server, "lost", short) {
		t.Error("what is lost arrives at once")
	}
	client.Close()
	n.Close()
}
