package raftlog

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// BenchmarkAppend appends groups of entries and waits for each group, on memory and on
// the real disk. One operation is one entry; cpu-ns is all the process used between Append
// and release, kernel included.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct{ batch, size int }{{1, 300}, {1000, 300}, {10, 1500 << 10}} {
		for _, where := range []string{"mem", "disk"} {
			b.Run(fmt.Sprintf("%s/batch=%d/bytes=%d", where, c.batch, c.size), func(b *testing.B) {
				dir, fs := "log", vfs.FS(vfs.NewMem())
				if where == "disk" {
					dir, fs = b.TempDir(), vfs.Default
				}
				released := make(chan struct{}, 1)
				l := mustOpen(b, dir, Options{
					FS: fs, Released: func([]*raftpb.Message) { released <- struct{}{} }, noSpares: where == "mem",
				})
				data := make([]byte, c.size)
				index := uint64(0)
				b.SetBytes(int64(c.size))
				b.ReportAllocs()
				var cpu time.Duration
				b.ResetTimer()
				for n := 0; n < b.N; n += c.batch {
					es := make([]*raftpb.Entry, 0, c.batch)
					for range c.batch {
						index++
						es = append(es, newEntry(index, 1, raftpb.EntryNormal, data))
					}
					a := Append{Entries: es, Responses: response(index)}
					start := cpuTime(b)
					l.Append(a)
					<-released
					cpu += cpuTime(b) - start
					if index%100000 < uint64(c.batch) || c.size > 1<<20 {
						if err := l.Compact(index, 1<<20); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.StopTimer()
				b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N), "cpu-ns/entry")
				mustClose(b, l)
			})
		}
	}
}

// cpuTime is what the process has used so far.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEncode is the writer's CPU for one entry of 300 bytes: copy and checksum.
func BenchmarkEncode(b *testing.B) {
	es := entries(1, 1000, 1)
	for _, e := range es {
		e.Data = make([]byte, 300)
	}
	var buf []byte
	b.SetBytes(300)
	b.ReportAllocs()
	for n := 0; n < b.N; n += len(es) {
		buf = buf[:0]
		for _, e := range es {
			buf = appendEntry(buf, e, 12345)
		}
	}
}

// BenchmarkOpen reads a log of two full segments, 128 MiB, of which it has to look at all;
// cpu-ms is what the process used, kernel included.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	l := mustOpen(b, dir, Options{NoSync: true})
	for i := uint64(1); i < 390000; i += 100 {
		es := entries(i, i+99, 1)
		for _, e := range es {
			e.Data = make([]byte, 300)
		}
		l.Append(Append{Entries: es})
		mustSync(b, l)
	}
	mustClose(b, l)
	b.ReportAllocs()
	start := cpuTime(b)
	for b.Loop() {
		l := mustOpen(b, dir, Options{noSpares: true})
		mustClose(b, l)
	}
	b.ReportMetric(float64((cpuTime(b)-start).Milliseconds())/float64(b.N), "cpu-ms")
}

// BenchmarkFdatasync is the measurement behind preparing segments: one write and one
// fdatasync in a file that was only created, one whose blocks were reserved, and one whose
// blocks were written before (zeroed, or recycled).
func BenchmarkFdatasync(b *testing.B) {
	for _, size := range []int{512, 4096, 16384} {
		for _, mode := range []string{"grown", "reserved", "written"} {
			b.Run(fmt.Sprintf("%d/%s", size, mode), func(b *testing.B) {
				const fileBytes = 16 << 20
				path := filepath.Join(b.TempDir(), "f")
				f, err := vfs.Default.OpenReadWrite(path, diskCategory)
				if err != nil {
					b.Fatal(err)
				}
				defer os.Remove(path)
				switch mode {
				case "reserved":
					err = f.Preallocate(0, fileBytes)
				case "written":
					_, err = f.WriteAt(make([]byte, fileBytes), 0)
				}
				if err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				buf := make([]byte, size)
				var took []time.Duration
				off := int64(0)
				for b.Loop() {
					start := time.Now()
					if _, err := f.WriteAt(buf, off%fileBytes); err != nil {
						b.Fatal(err)
					}
					if err := f.SyncData(); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(start))
					off += int64(size) // the file is written around: 16 MiB are more than a run needs
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// newEntry makes an entry and its three numbers in one allocation.
func newEntry(index, term uint64, typ raftpb.EntryType, data []byte) *raftpb.Entry {
	return new(slot).set(index, term, typ, data)
}
