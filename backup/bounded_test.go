package backup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// hanging is a depot of which each call waits as long as gate is open.
type hanging struct {
	Depot
	gate   chan struct{} // nil: nothing hangs; closed: what hung goes on
	begun  atomic.Int32
	closed atomic.Int32
}

func (h *hanging) wait() {
	h.begun.Add(1)
	if h.gate != nil {
		<-h.gate
	}
}

func (h *hanging) List(ctx context.Context, folder string) ([]Item, error) {
	h.wait()
	return h.Depot.List(ctx, folder)
}

func (h *hanging) Write(ctx context.Context, name string, b []byte) error {
	h.wait()
	return h.Depot.Write(ctx, name, b)
}

func (h *hanging) Read(ctx context.Context, name string) (io.ReadCloser, error) {
	h.begun.Add(1)
	r, err := h.Depot.Read(ctx, name)
	return &hangingReader{r, h}, err
}

type hangingReader struct {
	io.ReadCloser
	h *hanging
}

func (r *hangingReader) Read(p []byte) (int, error) { r.h.wait(); return r.ReadCloser.Read(p) }
func (r *hangingReader) Close() error               { r.h.closed.Add(1); return r.ReadCloser.Close() }

// TestDepotHangs: a call of a depot that hangs fails, no other is begun meanwhile, and when it answers
// again all is as before: what was written late is there as a whole.
func TestDepotHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &hanging{Depot: Dir(vfs.NewMem(), "/depot")}
		d := Bounded(inner, time.Minute)
		ctx := t.Context()
		content := bytes.Repeat([]byte("content"), readBytes/4)
		if err := d.Write(ctx, "c/a/1", content); err != nil {
			t.Fatal(err)
		}
		if b, err := readAll(ctx, d, "c/a/1", 1<<30); err != nil || !bytes.Equal(b, content) {
			t.Fatalf("%d bytes of %d, %v", len(b), len(content), err)
		}

		inner.gate = make(chan struct{})
		inner.begun.Store(0)
		start := time.Now()
		if err := d.Write(ctx, "c/a/2", content); !errors.Is(err, errSilent) || time.Since(start) != time.Minute {
			t.Errorf("a write that hangs: %v after %v", err, time.Since(start))
		}
		if _, err := d.List(ctx, "c"); !errors.Is(err, errSilent) || inner.begun.Load() != 1 {
			t.Errorf("the next call: %v, %d were begun", err, inner.begun.Load())
		}
		ended, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		start = time.Now()
		if _, err := d.List(ended, "c"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("a caller that ends: %v after %v", err, time.Since(start))
		}
		close(inner.gate)
		synctest.Wait()
		if b, err := readAll(ctx, d, "c/a/2", 1<<30); err != nil || !bytes.Equal(b, content) {
			t.Errorf("written late: %d bytes, %v", len(b), err)
		}

		// A read that hangs in the middle: its file is closed when it has ended.
		inner.closed.Store(0)
		r, err := d.Read(ctx, "c/a/1")
		if err != nil {
			t.Fatal(err)
		}
		inner.gate = make(chan struct{})
		if _, err := io.ReadAll(r); !errors.Is(err, errSilent) {
			t.Errorf("a read that hangs: %v", err)
		}
		if err := r.Close(); err != nil || inner.closed.Load() != 0 {
			t.Errorf("closed %d times, %v", inner.closed.Load(), err)
		}
		close(inner.gate)
		synctest.Wait()
		if inner.closed.Load() != 1 {
			t.Errorf("closed %d times", inner.closed.Load())
		}
		if items, err := d.List(ctx, "c"); err != nil || len(items) != 1 {
			t.Errorf("%v, %v", items, err)
		}
	})
}

// TestHangingFile: a depot whose file never opens, here a pipe that nobody writes into, as a
// network file system does that is gone, keeps who reads it for so long only.
func TestHangingFile(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Skip(err)
	}
	d := Bounded(Dir(vfs.Default, dir), 50*time.Millisecond)
	if _, err := d.Read(t.Context(), "pipe"); !errors.Is(err, errSilent) {
		t.Errorf("a pipe that nobody writes into: %v", err)
	}
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0) // lets the other end go on
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}
