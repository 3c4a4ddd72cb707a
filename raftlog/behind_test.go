package raftlog

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3/raftpb"
)

// TestGroupBehindAnother: while the disk has a large group, the next one is made, and that is all:
// nothing behind it is written, installed or released, and what it replaces does not count as written.
// If the disk fails then, nothing behind it is ever released, and everybody who waits is told.
func TestGroupBehindAnother(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprintf("fails=%v", fails), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s sink
				var held, installed atomic.Bool
				var writes atomic.Int32
				leave := make(chan struct{})
				fs := vfs.NewMem()
				o := testOptions(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
					if op.Kind == errorfs.OpFileWriteAt {
						writes.Add(1)
					}
					if op.Kind == errorfs.OpFileSyncData && held.CompareAndSwap(true, false) {
						<-leave
						if fails {
							return syscall.EIO
						}
					}
					return nil
				})), &s)
				o.PipelineBytes = 1
				var l *Log
				writtenAt := map[uint64]uint64{}
				o.Released = func(ms []*raftpb.Message) {
					l.mu.Lock()
					defer l.mu.Unlock()
					for _, m := range ms {
						writtenAt[m.GetIndex()] = l.written
					}
					s.take(ms)
				}
				l = mustOpen(t, "log", o)
				answers := make(chan error, 3)
				sync := func() { go func() { answers <- l.Sync(t.Context()) }() }

				held.Store(true)
				l.Append(Append{HardState: hardState(1, 1, 0), Entries: entries(1, 3, 1), Responses: response(1)})
				sync()
				synctest.Wait()
				before := writes.Load()

				// Another leader has entry 2 replaced.
				l.Append(Append{HardState: hardState(2, 2, 1), Entries: entries(2, 2, 2), Responses: response(2)})
				sync()
				synctest.Wait()
				if len(l.queue) > 0 || l.w.records == 0 {
					t.Errorf("the next group is not made: %d items wait", len(l.queue))
				}
				l.Append(Append{
					HardState: hardState(2, 2, 10), Snapshot: snapshot(10, 2), Responses: response(3),
					Install: func() error {
						if got := s.indexes(); !slices.Equal(got, []uint64{1, 2}) {
							t.Errorf("installed when %v were released", got)
						}
						installed.Store(true)
						return nil
					},
				})
				l.Append(Append{Entries: entries(11, 12, 2), Responses: response(4)})
				sync()
				time.Sleep(time.Minute)
				closed := make(chan error)
				go func() { closed <- l.Close() }()
				synctest.Wait()
				if n := writes.Load() - before; n > 0 || installed.Load() || len(s.indexes()) > 0 || len(answers) > 0 {
					t.Errorf("while the disk had a group: %d writes, installed %v, released %v, %d Syncs answered", n, installed.Load(), s.indexes(), len(answers))
				}
				if st, u := l.Stats(), l.Unsynced(); st.InFlight < time.Minute || u.Oldest < st.InFlight || u.Entries != 6 {
					t.Errorf("%+v, %+v", st, u)
				}

				close(leave)
				err := <-closed
				for range 3 {
					if got := <-answers; fails != errors.Is(got, syscall.EIO) || !fails && got != nil {
						t.Errorf("a Sync was told: %v", got)
					}
				}
				if fails {
					if n := writes.Load() - before; n > 0 || installed.Load() || len(s.indexes()) > 0 || len(s.failures()) != 1 || !errors.Is(err, syscall.EIO) {
						t.Errorf("after the failure: %d writes, installed %v, released %v, told %v, closed: %v", n, installed.Load(), s.indexes(), s.failures(), err)
					}
					return
				}
				if got := s.indexes(); err != nil || !slices.Equal(got, []uint64{1, 2, 3, 4}) || !installed.Load() {
					t.Errorf("released %v, installed %v, closed: %v", got, installed.Load(), err)
				}
				if writtenAt[1] != 1 || writtenAt[2] != 2 || writtenAt[4] != 12 {
					t.Errorf("written when they were released: %v", writtenAt)
				}
				l = mustOpen(t, "log", testOptions(fs, &sink{}))
				if m := read(l); m.base != 10 || m.last() != 12 || m.hard != (hard{2, 2, 10}) {
					t.Errorf("opened again: %+v", m)
				}
				mustClose(t, l)
			})
		})
	}
}

// TestSegmentBehindAnother: a group that begins a segment, and is made while the one before it is on
// its way, has that one's hard state in the segment's header: it is all that is left of it when Compact
// has dropped the segment before. Until the disk has it as well, what it holds waits since it was
// appended.
func TestSegmentBehindAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var held atomic.Bool
		leave := make(chan struct{})
		fs := vfs.NewMem()
		o := testOptions(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSyncData && held.Load() {
				<-leave
			}
			return nil
		})), &sink{})
		o.PipelineBytes = 1
		l := mustOpen(t, "log", o)
		held.Store(true)
		large := strings.Repeat("x", 3*pageBytes)
		l.Append(Append{HardState: hardState(2, 2, 0), Entries: []*raftpb.Entry{entry(1, 2, large)}})
		synctest.Wait()
		l.Append(Append{Entries: []*raftpb.Entry{entry(2, 2, large)}})
		time.Sleep(time.Minute)
		leave <- struct{}{}
		synctest.Wait()
		if st, u := l.Stats(), l.Unsynced(); st.Syncs != 1 || st.InFlight == 0 || u.Oldest < time.Minute || u.Entries != 1 {
			t.Errorf("%+v, %+v", st, u)
		}
		held.Store(false)
		leave <- struct{}{}
		mustSync(t, l)
		if err := l.Compact(1, 0); err != nil {
			t.Fatal(err)
		}
		if first := l.Oldest(); first != 2 {
			t.Fatalf("the files begin with entry %d", first)
		}
		mustClose(t, l)
		l = mustOpen(t, "log", testOptions(fs, &sink{}))
		if m := read(l); m.base != 1 || m.last() != 2 || m.hard != (hard{2, 2, 0}) {
			t.Errorf("opened again: base %d, last %d, %+v", m.base, m.last(), m.hard)
		}
		mustClose(t, l)
	})
}
