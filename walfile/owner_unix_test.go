//go:build unix

package walfile

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestGiveTo: what root makes belongs to who has the rest, folders and files.
func TestGiveTo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give files away")
	}
	dir := t.TempDir()
	like, made := filepath.Join(dir, "like"), filepath.Join(dir, "made")
	for _, d := range []string{like, filepath.Join(made, "store")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(made, "store", "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(like, 1234, 2345); err != nil {
		t.Skip(err) // not in this container
	}
	if err := GiveTo(made, like); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{made, filepath.Dir(file), file} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 1234 || st.Gid != 2345 {
			t.Errorf("%s belongs to %d:%d", name, st.Uid, st.Gid)
		}
	}
}
