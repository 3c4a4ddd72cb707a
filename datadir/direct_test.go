package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestDirectWrites holds files that are written through FS against what was written, whatever the
// sizes and places of the writes, and whether the file system takes direct writes or refuses them.
func TestDirectWrites(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	size := func() int {
		switch rng.IntN(4) {
		case 0:
			return rng.IntN(100)
		case 1:
			return rng.IntN(2*directBytes + 2)
		case 2:
			return rng.IntN(4) * directBytes
		}
		return rng.IntN(chunkBytes + directPage)
	}
	some := func() []byte {
		n := size()
		from := rng.IntN(len(noise) - n)
		return noise[from : from+n : from+n]
	}
	direct := 0
	for run := range 24 {
		name := filepath.Join(t.TempDir(), "file")
		f, err := FS().Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		d := f.(*directFile)
		var want []byte
		for range 12 {
			p := some()
			var n int
			if run%3 == 0 { // as the log does it, from aligned memory or not
				off := rng.IntN(len(want)/512+1) * 512
				if rng.IntN(2) == 0 {
					p = append(make([]byte, 0, chunkBytes+2*directPage), p...)
				}
				want = append(want, make([]byte, max(0, off+len(p)-len(want)))...)
				copy(want[off:], p)
				n, err = d.WriteAt(p, int64(off))
			} else {
				want = append(want, p...)
				n, err = d.Write(p)
			}
			if err != nil || n != len(p) {
				t.Fatalf("run %d: %d bytes of %d were written: %v", run, n, len(p), err)
			}
			switch rng.IntN(6) {
			case 0:
				err = d.Sync()
			case 1:
				err = d.SyncData()
			case 2:
				_, err = d.SyncTo(int64(len(want)))
			case 3:
				var st vfs.FileInfo
				if st, err = d.Stat(); err == nil && st.Size() != int64(len(want)) {
					t.Fatalf("run %d: the file has %d bytes of %d", run, st.Size(), len(want))
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if d.direct != nil {
				direct++
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("run %d: the file differs from what was written (%d bytes, %d)", run, len(got), len(want))
		}
	}
	t.Logf("the file system took direct writes after %d of %d writes", direct, 24*12)
}

// TestDirectWriteRefused has the kernel refuse direct writes that the file system had seemed to take.
func TestDirectWriteRefused(t *testing.T) {
	for _, at := range []bool{false, true} {
		t.Run(fmt.Sprintf("WriteAt=%v", at), func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "file")
			f, err := FS().Create(name, vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			d := f.(*directFile)
			// EINVAL is what the kernel says where it takes no direct write.
			d.tried, d.align, d.direct = true, 1, refusing(t)
			want := bytes.Repeat([]byte("0123456789abcde\n"), chunkBytes/8)
			if at {
				_, err = d.WriteAt(want, 0)
			} else {
				_, err = d.Write(want)
			}
			if err != nil {
				t.Fatal(err)
			}
			if d.direct != nil {
				t.Error("it is still tried")
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("the file differs from what was written (%v)", err)
			}
		})
	}
}

// refusing is a file whose writes at an offset fail with EINVAL.
func refusing(t *testing.T) *os.File {
	f, err := os.OpenFile("/proc/self/coredump_filter", os.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	if _, err := f.WriteAt(make([]byte, directPage), 0); !errors.Is(err, syscall.EINVAL) {
		t.Skipf("nothing here refuses writes with EINVAL: %v", err)
	}
	return f
}
