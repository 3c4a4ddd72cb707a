package mvcc

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// benchRig is on the real disk, with the sizes of production.
func benchRig(b *testing.B, opts Options) *rig {
	r := &rig{t: b, fs: vfs.Default, dir: b.TempDir(), opts: opts}
	r.open()
	b.Cleanup(r.close)
	return r
}

const benchBatch = 200

// cpuPerOp reports the CPU time of the process for each operation, which other load on the machine
// disturbs less.
func cpuPerOp(b *testing.B) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

func benchKey(i int) []byte { return fmt.Appendf(nil, "/registry/pods/default/%09d", i) }

// put writes keys in batches of benchBatch transactions of one put, as the applier does.
func (r *rig) put(n int, value []byte, key func(i int) []byte) {
	for i := 0; i < n; {
		index, _ := r.st.Applied()
		b := r.st.NewBatch(index+benchBatch, 1)
		w := r.NewWriter(b)
		for range benchBatch {
			w.Begin()
			if _, _, err := w.Put(key(i), value, 0); err != nil {
				r.t.Fatal(err)
			}
			w.End()
			if i++; i == n {
				break
			}
		}
		if err := b.Commit(); err != nil {
			r.t.Fatal(err)
		}
		w.Publish()
	}
}

// settle lets the storage engine come to rest, so that its work on the past is not measured.
func (r *rig) settle() {
	if err := r.st.CompactAll(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func BenchmarkPut(b *testing.B) {
	value := make([]byte, 256)
	b.Run("new", func(b *testing.B) {
		r := benchRig(b, Options{})
		b.ReportAllocs()
		b.ResetTimer()
		defer cpuPerOp(b)()
		r.put(b.N, value, benchKey)
	})
	b.Run("hot", func(b *testing.B) {
		r := benchRig(b, Options{})
		r.put(10_000, value, benchKey)
		b.ReportAllocs()
		b.ResetTimer()
		defer cpuPerOp(b)()
		r.put(b.N, value, func(i int) []byte { return benchKey(i % 10_000) })
	})
	b.Run("cold", func(b *testing.B) {
		const keys = 500_000
		r := benchRig(b, Options{CacheBytes: 1 << 20})
		r.put(keys, value, benchKey)
		r.settle()
		rng := rand.New(rand.NewPCG(1, 1))
		b.ReportAllocs()
		b.ResetTimer()
		defer cpuPerOp(b)()
		r.put(b.N, value, func(int) []byte { return benchKey(rng.IntN(keys)) })
	})
}

func BenchmarkGet(b *testing.B) {
	const keys = 200_000
	r := benchRig(b, Options{CacheBytes: 8 << 20})
	r.put(keys, make([]byte, 256), benchKey)
	r.settle()
	ctx := context.Background()
	get := func(b *testing.B, key []byte, want int) {
		if res, err := r.Range(ctx, key, nil, RangeOptions{}); err != nil || len(res.KVs) != want {
			b.Fatal(err, len(res.KVs))
		}
	}
	b.Run("hot", func(b *testing.B) {
		b.ReportAllocs()
		defer cpuPerOp(b)()
		for i := 0; b.Loop(); i++ {
			get(b, benchKey(keys-1-i%1000), 1)
		}
	})
	b.Run("cold", func(b *testing.B) {
		rng := rand.New(rand.NewPCG(1, 1))
		b.ReportAllocs()
		defer cpuPerOp(b)()
		for b.Loop() {
			get(b, benchKey(rng.IntN(keys)), 1)
		}
	})
	b.Run("missing", func(b *testing.B) {
		b.ReportAllocs()
		defer cpuPerOp(b)()
		for i := 0; b.Loop(); i++ {
			get(b, append(benchKey(i%keys), 'x'), 0)
		}
	})
}

func BenchmarkRange10000(b *testing.B) {
	r := benchRig(b, Options{})
	const keys, versions = 10_000, 4
	r.put(versions*keys, make([]byte, 256), func(i int) []byte { return benchKey(i % keys) })
	ctx := context.Background()
	for _, where := range []string{"memory", "disk"} {
		for _, o := range []struct {
			name string
			RangeOptions
		}{{"all", RangeOptions{}}, {"keys", RangeOptions{KeysOnly: true}}, {"count", RangeOptions{CountOnly: true}}, {"old", RangeOptions{Rev: keys + 1}}} {
			b.Run(where+"/"+o.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if res, err := r.Range(ctx, benchKey(0), []byte("/registry0"), o.RangeOptions); err != nil || res.Count != keys {
						b.Fatal(err, res.Count)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/keys, "ns/key")
			})
		}
		r.flush()
	}
}

// BenchmarkPage pages through 100,000 keys, 500 at a time: an operation is one page.
func BenchmarkPage(b *testing.B) {
	r := benchRig(b, Options{})
	const keys = 100_000
	r.put(keys, make([]byte, 256), benchKey)
	r.flush()
	ctx := context.Background()
	<-r.keyCounts.ready
	key, rev := benchKey(0), int64(0)
	b.ReportAllocs()
	defer cpuPerOp(b)()
	for b.Loop() {
		res, err := r.Range(ctx, key, []byte("/registry0"), RangeOptions{Limit: 500, Rev: rev})
		if err != nil {
			b.Fatal(err)
		}
		if res.Count <= 500 {
			key, rev = benchKey(0), 0
			continue
		}
		key, rev = append(res.KVs[499].Key, 0), res.Rev
	}
}

func BenchmarkOpen1000000(b *testing.B) {
	r := benchRig(b, Options{})
	r.put(1_000_000, make([]byte, 128), benchKey)
	r.flush()
	ctx := context.Background()
	for b.Loop() {
		b.StopTimer()
		r.close()
		b.StartTimer()
		r.open()
		if res, err := r.Range(ctx, benchKey(12345), nil, RangeOptions{}); err != nil || res.Count != 1 {
			b.Fatal(err, res.Count)
		}
	}
}

func BenchmarkHashKV(b *testing.B) {
	r := benchRig(b, Options{})
	const keys = 200_000
	r.put(keys, make([]byte, 256), benchKey)
	r.flush()
	for b.Loop() {
		if _, _, _, err := r.HashKV(context.Background(), 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/keys, "ns/revision")
}

// BenchmarkCompact: an operation is one removed version.
func BenchmarkCompact(b *testing.B) {
	r := benchRig(b, Options{CompactionSleep: -1, NoCompactionHash: true})
	const keys = 20_000
	n := 0
	r.put(keys, make([]byte, 256), benchKey)
	b.ResetTimer()
	defer cpuPerOp(b)()
	for n < b.N {
		b.StopTimer()
		r.put(keys, make([]byte, 256), benchKey)
		n += keys
		b.StartTimer()
		r.compactTo(r.Revision())
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/version")
}

func BenchmarkEvents(b *testing.B) {
	r := benchRig(b, Options{CacheBytes: 1})
	const keys = 100_000
	r.put(keys, make([]byte, 256), benchKey)
	r.flush()
	defer cpuPerOp(b)()
	for b.Loop() {
		if next, err := r.Events(context.Background(), 2, r.Revision(), 1<<40, nil, discard); err != nil || next != r.Revision()+1 {
			b.Fatal(next, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/keys, "ns/event")
}

// BenchmarkLargeValues writes 100 KB values over and over and reports how many bytes reach the disk
// for each byte put.
func BenchmarkLargeValues(b *testing.B) {
	r := benchRig(b, Options{})
	value := make([]byte, 100<<10)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range value {
		value[i] = byte(rng.Uint32())
	}
	written := func() (n int64) {
		text, err := os.ReadFile("/proc/self/io")
		if err != nil {
			b.Skip(err)
		}
		if _, err := fmt.Sscanf(string(text[bytes.Index(text, []byte("wchar:")):]), "wchar: %d", &n); err != nil {
			b.Skip(err)
		}
		return n
	}
	before := written()
	b.SetBytes(int64(len(value)))
	r.put(b.N, value, func(i int) []byte { return benchKey(i % 500) })
	r.flush()
	b.StopTimer()
	for r.st.Pebble().Compact.NumInProgress > 0 {
		runtime.Gosched()
	}
	b.ReportMetric(float64(written()-before)/float64(b.N*len(value)), "written/put")
}

func discard(int64, []*mvccpb.Event) error { return nil }

// BenchmarkDeleteRange deletes 100,000 keys at once, one step of the applier.
func BenchmarkDeleteRange(b *testing.B) {
	const keys = 100_000
	value := make([]byte, 256)
	r := benchRig(b, Options{})
	b.ReportAllocs()
	for range b.N {
		b.StopTimer()
		r.put(keys, value, benchKey)
		r.settle()
		runtime.GC()
		b.StartTimer()
		index, _ := r.st.Applied()
		batch := r.st.NewBatch(index+1, 1)
		w := r.NewWriter(batch)
		w.Begin()
		if n, _, err := w.DeleteRange(benchKey(0), []byte("0"), false); err != nil || n != keys {
			b.Fatal(n, err)
		}
		w.End()
		if err := batch.Commit(); err != nil {
			b.Fatal(err)
		}
		w.Publish()
	}
}
