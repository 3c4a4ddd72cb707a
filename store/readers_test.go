package store

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestCloseAmidReads closes a store that is read, in files and in memory, as handlers do whose
// clients keep them beyond a member's stop: the engine panicked, in Close and in the reader.
func TestCloseAmidReads(t *testing.T) {
	reads := map[string]func(t *testing.T, s *Store) (read func() string, end func()){
		"an iterator": func(t *testing.T, s *Store) (func() string, func()) {
			lower, upper := span(spaceCluster)
			it, err := s.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
			if err != nil {
				t.Fatal(err)
			}
			return func() string {
				n := 0
				for ok := it.First(); ok; ok = it.Next() {
					n++
				}
				return strings.Repeat("key ", n)
			}, func() { _ = it.Close() }
		},
		"a view": func(t *testing.T, s *Store) (func() string, func()) {
			v := s.View()
			return func() string {
				if _, ok, err := v.Get(ClusterKey("flushed")); !ok || err != nil {
					t.Errorf("a view that is open does not find a key: %v", err)
				}
				if _, err := v.NewIter(nil); !errors.Is(err, errClosed) {
					t.Errorf("a view of a store that closes makes an iterator: %v", err)
				}
				return "key key "
			}, v.Close
		},
		"an iterator of a view that was closed": func(t *testing.T, s *Store) (func() string, func()) {
			v := s.View()
			lower, upper := span(spaceCluster)
			it, err := v.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
			if err != nil {
				t.Fatal(err)
			}
			v.Close()
			return func() string {
				it.First()
				return strings.Repeat("key ", 1+map[bool]int{true: 1}[it.Next()])
			}, func() { _ = it.Close() }
		},
	}
	for name, begin := range reads {
		for _, patient := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", ended in time", false: ", not ended"}[patient], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := open(t, vfs.NewMem(), "s")
					write(t, s, "flushed", "1")
					flush(t, s)
					write(t, s, "in memory", "2")
					read, end := begin(t, s)
					closed := make(chan error, 1)
					go func() { closed <- s.Close() }()
					synctest.Wait()
					if !patient {
						if err := <-closed; err == nil || !strings.Contains(err.Error(), "still being read after 5s (by 1)") {
							t.Errorf("closing a store that is read on: %v", err)
						}
					}
					if got := read(); got != "key key " {
						t.Errorf("it reads %q", got)
					}
					if _, err := s.NewIter(nil); !errors.Is(err, errClosed) {
						t.Errorf("an iterator after the close began: %v", err)
					}
					if _, _, err := s.Get(ClusterKey("flushed")); !errors.Is(err, errClosed) {
						t.Errorf("a get after the close began: %v", err)
					}
					v := s.View()
					if _, _, err := v.Get(ClusterKey("flushed")); !errors.Is(err, errClosed) {
						t.Errorf("a view after the close began: %v", err)
					}
					v.Close()
					if m := s.Pebble(); m.TableIters != 0 {
						t.Errorf("metrics of a closed store: %v", m)
					}
					end()
					if patient {
						if err := <-closed; err != nil {
							t.Error(err)
						}
					}
					synctest.Wait()
					again := open(t, s.fs, "s") // the engine's lock is free
					closeStore(t, again)
				})
			})
		}
	}
}
