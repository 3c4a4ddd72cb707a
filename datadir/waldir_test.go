package datadir

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-semver/semver"
)

// TestMoveWALDir: with the log in a directory of its own, a run that was killed at any point is
// finished or undone by the next one, and nothing is removed that it has not put there.
func TestMoveWALDir(t *testing.T) {
	for _, tc := range []struct {
		about  string
		toEtcd bool
		data   []string // files in the data directory
		before []string // files in the other
		says   string
		after  []string
	}{
		{"before anything", false, []string{"member/snap/db"}, []string{"a.wal", "0.tmp"}, "",
			[]string{"0.tmp", "a.wal"}},
		{"half built", false, []string{"member/snap/db"}, []string{"a.wal", "log.migrating/x"}, "",
			[]string{"a.wal"}},
		{"put, not exchanged", false, []string{"member/snap/db", "member.migrating/store/x"}, []string{"a.wal", "log/x", "member.migrating"}, "",
			[]string{"a.wal"}},
		{"exchanged", false, []string{"member/identity.json", "member/store/x", "member.migrating/snap/db"}, []string{"a.wal", "0.tmp", "log/x", "member.migrating"}, "belay's already",
			[]string{"log/x", "wal.etcd/0.tmp", "wal.etcd/a.wal"}},
		{"set aside in part", false, []string{"member/identity.json", "member/store/x", "member.migrating/snap/db"}, []string{"a.wal", "wal.etcd/0.tmp", "log/x", "member.migrating"}, "belay's already",
			[]string{"log/x", "wal.etcd/0.tmp", "wal.etcd/a.wal"}},
		{"somebody else's log", false, []string{"member/snap/db"}, []string{"a.wal", "log/x"}, "not this member's",
			[]string{"a.wal", "log/x"}},
		{"kept from before", false, []string{"member/snap/db"}, []string{"a.wal", "wal.etcd/b.wal"}, "earlier run",
			[]string{"a.wal", "wal.etcd/b.wal"}},
		{"back, put in part", true, []string{"member/identity.json", "member/store/x"}, []string{"a.wal", "wal.migrating/b.wal", "log/x", "member.migrating"}, "",
			[]string{"log/x"}},
		{"back, exchanged", true, []string{"member/snap/db", "member.migrating/identity.json", "member.migrating/store/x"}, []string{"a.wal", "log/x", "member.migrating"}, "etcd's already",
			[]string{"a.wal", "log.belay/x"}},
		{"back, somebody else's log", true, []string{"member/identity.json", "member/store/x"}, []string{"a.wal", "log/x"}, "not this member's",
			[]string{"a.wal", "log/x"}},
	} {
		t.Run(tc.about, func(t *testing.T) {
			m := Move{DataDir: t.TempDir(), WALDir: t.TempDir()}
			if tc.toEtcd {
				m.ToEtcd = semver.New("3.6.0")
			}
			for dir, files := range map[string][]string{m.DataDir: tc.data, m.WALDir: tc.before} {
				for _, f := range files {
					path := filepath.Join(dir, f)
					if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := m.Run(t.Context()); err == nil || !strings.Contains(err.Error(), tc.says) { // none of the data is any
				t.Errorf("%v, want %q", err, tc.says)
			}
			var after []string
			if err := filepath.WalkDir(m.WALDir, func(path string, d os.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					rel, rerr := filepath.Rel(m.WALDir, path)
					after, err = append(after, filepath.ToSlash(rel)), rerr
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			slices.Sort(after)
			after = slices.DeleteFunc(after, func(name string) bool { return name == "log/LOCK" })
			if !slices.Equal(after, tc.after) {
				t.Errorf("%v, want %v", after, tc.after)
			}
		})
	}
}

// TestChangeSchemaNowhere: a directory that holds nothing is told as etcdutl tells it.
func TestChangeSchemaNowhere(t *testing.T) {
	dir := t.TempDir()
	_, err := ChangeSchema(dir, *semver.New("3.6.0"), 0, false)
	if want := "stat " + filepath.Join(dir, "member", "snap", "db") + ": "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}
