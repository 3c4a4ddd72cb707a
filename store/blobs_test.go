package store

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestDamagedFileOfValues: a file of values whose end is damaged, or that is missing, fails the
// reads that need it, and is reported with its name. The engine alone panics.
func TestDamagedFileOfValues(t *testing.T) {
	key := AppendUserKey(nil, []byte("k"), 2, 0)
	for name, damage := range map[string]func(fs *vfs.MemFS, path string) error{
		"missing": func(fs *vfs.MemFS, path string) error { return fs.Remove(path) },
		"short": func(fs *vfs.MemFS, path string) error {
			return rewriteFile(fs, path, func(b []byte) []byte { return b[:20] })
		},
		"footer": func(fs *vfs.MemFS, path string) error {
			return rewriteFile(fs, path, func(b []byte) []byte { b[len(b)-30] ^= 1; return b })
		},
		"magic": func(fs *vfs.MemFS, path string) error {
			return rewriteFile(fs, path, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		},
		"nothing": func(fs *vfs.MemFS, path string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := open(t, fs, "db")
			b := s.NewBatch(1, 1)
			if err := errors.Join(b.Set(key, make([]byte, separateBytes)), b.Commit()); err != nil {
				t.Fatal(err)
			}
			flush(t, s)
			closeStore(t, s)
			blob := ""
			names, err := fs.List("db")
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				if strings.HasSuffix(n, ".blob") {
					blob = fs.PathJoin("db", n)
				}
			}
			if blob == "" {
				t.Fatalf("no file of values among %v", names)
			}
			if err := damage(fs, blob); err != nil {
				t.Fatal(err)
			}
			var told []error
			s, err = Open("db", Options{FS: fs, Corrupt: func(err error) { told = append(told, err) }})
			if err != nil {
				if name != "missing" || !strings.Contains(err.Error(), "1 of 1 files of values (db/*.blob) are missing") {
					t.Fatal(err)
				}
				return
			}
			defer closeStore(t, s)
			if name == "missing" {
				t.Fatal("a store without its values is opened")
			}
			it, err := s.NewIter(nil)
			if err != nil {
				t.Fatal(err)
			}
			defer it.Close()
			if !it.SeekGE(key) {
				t.Fatal("the key is not there", it.Error())
			}
			value, err := it.ValueAndErr()
			if name == "nothing" {
				if err != nil || len(value) != separateBytes || len(told) > 0 {
					t.Fatalf("%d bytes, %v, told %v", len(value), err, told)
				}
				return
			}
			if err == nil || !strings.Contains(Explain(err).Error(), blob) || !errors.Is(err, errBlobDamaged) {
				t.Errorf("reading gives %v", err)
			}
			if len(told) == 0 || !strings.Contains(told[0].Error(), blob) {
				t.Errorf("told %v", told)
			}
		})
	}
}

func rewriteFile(fs vfs.FS, path string, change func([]byte) []byte) error {
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	w, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = w.Write(change(data))
	return errors.Join(err, w.Sync(), w.Close())
}

// TestDamageWithinValues: damage within a file of values is reported, too. The engine alone gives
// the reader an error, and tells nobody else: a member answered with it for ever instead of ending
// in favour of the others.
func TestDamageWithinValues(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, "db")
	key := AppendUserKey(nil, []byte("k"), 2, 0)
	b := s.NewBatch(1, 1)
	if err := errors.Join(b.Set(key, make([]byte, separateBytes)), b.Commit()); err != nil {
		t.Fatal(err)
	}
	flush(t, s)
	closeStore(t, s)
	names, err := fs.List("db")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasSuffix(n, ".blob") {
			if err := rewriteFile(fs, fs.PathJoin("db", n), func(b []byte) []byte { b[2] ^= 1; return b }); err != nil {
				t.Fatal(err)
			}
		}
	}
	var told []error
	if s, err = Open("db", Options{FS: fs, Corrupt: func(err error) { told = append(told, err) }}); err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	v := s.View()
	defer v.Close()
	if _, _, err := v.Get(key); !IsDamage(err) || len(told) != 1 || !IsDamage(told[0]) {
		t.Errorf("%v, told %v", err, told)
	}
	for _, err := range []error{nil, errors.New("another")} {
		if s.Note(err); len(told) != 1 {
			t.Errorf("told %v", told)
		}
	}
}
