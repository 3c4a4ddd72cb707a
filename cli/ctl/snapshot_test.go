package ctl

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// sender sends one snapshot to everybody who asks.
type sender struct {
	pb.UnimplementedMaintenanceServer
	blob  []byte
	asked atomic.Int32
}

func (s *sender) Snapshot(_ *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	s.asked.Add(1)
	half := len(s.blob) / 2
	if err := stream.Send(&pb.SnapshotResponse{Blob: s.blob[:half], RemainingBytes: uint64(len(s.blob) - half), Version: "3.7.0"}); err != nil {
		return err
	}
	return stream.Send(&pb.SnapshotResponse{Blob: s.blob[half:], Version: "3.7.0"})
}

func newSender(t *testing.T) (s *sender, address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	database := bytes.Repeat([]byte("database"), 4096)
	digest := sha256.Sum256(database)
	s = &sender{blob: append(database, digest[:]...)}
	server := grpc.NewServer()
	pb.RegisterMaintenanceServer(server, s)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return s, l.Addr().String()
}

// TestSnapshotSaveToWhatIsNoFile: a device, a pipe or standard output gets the snapshot itself, and
// stays what it is. The file that was received was renamed over it, which, as root, replaced
// /dev/null for the whole machine. A directory is refused before anything is received.
func TestSnapshotSaveToWhatIsNoFile(t *testing.T) {
	server, address := newSender(t)
	save := func(path string) (out, errs string, err error) {
		var o, e bytes.Buffer
		cmd := Command("belay ctl", nil, &o, &e)
		cmd.SetArgs([]string{"--endpoints=" + address, "snapshot", "save", path})
		err = cmd.Execute()
		return o.String(), e.String(), err
	}

	t.Run("device", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("no such device")
		}
		link := filepath.Join(t.TempDir(), "null") // in place of the device itself, which a failure would replace
		if err := os.Symlink(os.DevNull, link); err != nil {
			t.Fatal(err)
		}
		if _, _, err := save(link); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(link)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode()&fs.ModeDevice == 0 {
			t.Errorf("the device is now a %s of %d bytes", info.Mode(), info.Size())
		}
	})

	if t.Failed() {
		return // what follows would replace the machine's own /dev/stdout
	}
	t.Run("stdout", func(t *testing.T) {
		out, errs, err := save("/dev/stdout")
		if err != nil {
			t.Fatal(err)
		}
		if out != string(server.blob) {
			t.Errorf("standard output has %d bytes, not the %d of the snapshot alone", len(out), len(server.blob))
		}
		if !strings.Contains(errs, "Snapshot saved at /dev/stdout") {
			t.Errorf("standard error: %q", errs)
		}
	})

	t.Run("directory", func(t *testing.T) {
		before, dir := server.asked.Load(), t.TempDir()
		_, _, err := save(dir)
		if err == nil || !strings.Contains(err.Error(), "it is a directory") {
			t.Errorf("error: %v", err)
		}
		if server.asked.Load() != before {
			t.Error("the snapshot was asked for")
		}
		if _, err := os.Lstat(dir + ".part"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s.part: %v", dir, err)
		}
	})

	t.Run("file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "x.db")
		out, _, err := save(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(got, server.blob) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if want := "Snapshot saved at " + file + "\nServer version 3.7.0\n"; out != want {
			t.Errorf("standard output: %q, not %q", out, want)
		}
	})
}
