package datadir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/raftlog"
)

// testOptions are those of a raft log that only tests read.
func testOptions(fs vfs.FS, id Identity) raftlog.Options {
	return raftlog.Options{FS: fs, MemberID: id.Member, ClusterID: id.Cluster, Logger: zap.NewNop(),
		Released: func([]*raftpb.Message) {}, Failed: func(error) {}}
}

func founded(t *testing.T, name string) Identity {
	t.Helper()
	id, err := Found(name, "a=http://a:1,b=http://b:1,c=http://c:1", "token")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A directory of etcd's is left as it is, and one of Belay's keeps an etcd out.
func TestPrepare(t *testing.T) {
	fs := FS()
	etcds := t.TempDir()
	if err := os.MkdirAll(filepath.Join(etcds, "member", "snap"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(etcds, "member", "snap", "db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(fs, PathsOf(etcds, "")); err == nil || !strings.Contains(err.Error(), "is a data directory of etcd") {
		t.Errorf("%v", err)
	}
	if names, err := os.ReadDir(filepath.Join(etcds, "member")); err != nil || len(names) != 1 {
		t.Errorf("something was changed: %v, %v", names, err)
	}

	for _, wal := range []string{"", t.TempDir()} {
		dir := filepath.Join(t.TempDir(), "made")
		paths := PathsOf(dir, wal)
		for range 2 {
			parts, err := Prepare(fs, paths)
			if err != nil || parts.Log() != nil {
				t.Fatalf("%v, %v", parts, err)
			}
		}
		// What etcd does first, MkdirAll of member/snap, fails.
		if err := os.MkdirAll(filepath.Join(dir, "member", "snap"), 0o700); err == nil {
			t.Error("an etcd would start here")
		}
		if paths.logApart() != (wal != "") {
			t.Errorf("%v", paths)
		}
		// A log makes it a member's, and an etcd that got in all the same is told from one that was
		// there first.
		id := founded(t, "a")
		if err := fs.MkdirAll(filepath.Dir(paths.Log), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := WriteFirstLog(paths.Log, testOptions(fs, id), id); err != nil {
			t.Fatal(err)
		}
		parts, err := Prepare(fs, paths)
		if err != nil || parts.Log() == nil || parts.Log().MemberID != id.Member || parts.Log().ClusterID != id.Cluster {
			t.Fatalf("%v, %v", parts, err)
		}
		if err := os.Remove(filepath.Join(dir, "member", "snap")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, "member", "snap"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "member", "snap", "db"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Prepare(fs, paths); err == nil || !strings.Contains(err.Error(), "has data of Belay, and beside it data of an etcd") {
			t.Errorf("%v", err)
		}
	}
}

// A log that is moved to another disk may leave a link; the first log is not written through one.
func TestLinkedLog(t *testing.T) {
	fs := FS()
	paths := PathsOf(t.TempDir(), "")
	elsewhere := filepath.Join(t.TempDir(), "log")
	if err := os.MkdirAll(paths.Member, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, paths.Log); err != nil {
		t.Fatal(err)
	}
	for range 2 { // to nothing, then to an empty directory
		if _, err := Prepare(fs, paths); err == nil || !strings.Contains(err.Error(), "symbolic link to "+elsewhere) || !strings.Contains(err.Error(), "--wal-dir") {
			t.Fatalf("%v", err)
		}
		if err := os.MkdirAll(elsewhere, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(elsewhere); err != nil {
		t.Fatal(err)
	}
	id := founded(t, "a")
	if err := WriteFirstLog(elsewhere, testOptions(fs, id), id); err != nil {
		t.Fatal(err)
	}
	if parts, err := Prepare(fs, paths); err != nil || parts.Log() == nil {
		t.Errorf("a log that was moved: %v, %v", parts, err)
	}
}

// A data directory that is a link to nothing, or lies under one, is not said to exist.
func TestLinkToNothing(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/nowhere/at/all", link); err != nil {
		t.Fatal(err)
	}
	want := "cannot access data directory: " + link + " is a symbolic link to /nowhere/at/all, which does not exist."
	for _, dir := range []string{link, filepath.Join(link, "data")} {
		if _, err := Prepare(FS(), PathsOf(dir, "")); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// What Bind wrote an older copy of the log does not fit, and Close records where the log ends.
func TestBind(t *testing.T) {
	fs := vfs.NewMem()
	paths := PathsOf("/data", "")
	id := founded(t, "b")
	for _, dir := range []string{paths.Store} {
		if err := fs.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteFirstLog(paths.Log, testOptions(fs, id), id); err != nil {
		t.Fatal(err)
	}
	group := uint64(0)
	for range 3 {
		parts, err := Look(fs, paths)
		if err != nil {
			t.Fatal(err)
		}
		if got := parts.LeastGroup(); got < group {
			t.Errorf("the log must reach group %d, was %d", got, group)
		}
		o := testOptions(fs, id)
		o.LeastGroup = parts.LeastGroup()
		log, err := raftlog.Open(paths.Log, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := parts.Bind(log, false, zap.NewNop()); err != nil {
			t.Fatal(err)
		}
		bound, err := Look(fs, paths)
		if err != nil {
			t.Fatal(err)
		}
		if bound.LeastGroup() <= group {
			t.Errorf("bound at group %d after %d", bound.LeastGroup(), group)
		}
		group = bound.LeastGroup()
		parts.Close(log, zap.NewNop())
	}
	// Another log of the same member.
	if err := fs.RemoveAll(paths.Log); err != nil {
		t.Fatal(err)
	}
	if err := WriteFirstLog(paths.Log, testOptions(fs, id), id); err != nil {
		t.Fatal(err)
	}
	if _, err := Look(fs, paths); err == nil || !strings.Contains(err.Error(), "two histories") {
		t.Errorf("%v", err)
	}
}

// TestUnreadableRecord: where a record cannot be read, the error names it, and its twin if that is
// well, from which it can be mended; then the member starts with all that it knew.
func TestUnreadableRecord(t *testing.T) {
	t.Parallel()
	id := founded(t, "b")
	for _, tc := range []struct {
		name            string
		identity, store string // what they are made; empty: left as they are
		want            string
	}{
		{"one", "{", "", "/d/member/identity.json is damaged: unexpected end of JSON input, and /d/member/store/identity.json is well, and belongs to the raft log. Copy /d/member/store/identity.json over /d/member/identity.json and start again"},
		{"the store's", "", "\x00", "Copy /d/member/identity.json over /d/member/store/identity.json"},
		{"both", "{", "{", "/d/member/identity.json is damaged: unexpected end of JSON input. It says whose store and which raft log lie here."},
		{"one, and the other is another log's", "{", `{"member":"2","cluster":"1","log":"77"}`, "move it away, and the other identity.json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fs, paths := vfs.NewMem(), PathsOf("/d", "")
			if err := errors.Join(fs.MkdirAll(paths.Store, 0o700), WriteFirstLog(paths.Log, testOptions(fs, id), id)); err != nil {
				t.Fatal(err)
			}
			meta, _, err := raftlog.Peek(paths.Log, fs)
			if err == nil {
				err = Write(fs, paths, Record{Member: id.Member, Cluster: id.Cluster, Log: meta.LogID, Group: 1})
			}
			for path, content := range map[string]string{paths.identity(): tc.identity, paths.storeIdentity(): tc.store} {
				if content != "" {
					err = errors.Join(err, WriteFile(fs, fs.PathDir(path), identityFile, []byte(content)))
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = Look(fs, paths)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !IsDamage(err) {
				t.Errorf("%v, damage %v", err, IsDamage(err))
			}
		})
	}
}

// TestWhoseRecordIsDamaged: of the two records, one that differs from the other and from the log is
// damaged, as by one digit; where both differ from the log, folders were mixed up, which heals nothing.
func TestWhoseRecordIsDamaged(t *testing.T) {
	t.Parallel()
	right, member, cluster := Record{Member: 1, Cluster: 0x34948525}, Record{Member: 2, Cluster: 0x34948525}, Record{Member: 1, Cluster: 0x34948524}
	for _, tc := range []struct {
		identity, store *Record
		want            string
		damage          bool
	}{
		{&right, &right, "", false},
		{&right, nil, "", false},
		{&cluster, &right, "/d/member/identity.json is damaged", true},
		{&right, &cluster, "/d/member/store/identity.json is damaged", true},
		{&member, &right, "/d/member/identity.json is damaged", true},
		{&cluster, &cluster, "cannot run together", false},
		{&cluster, nil, "cannot run together", false},
		{nil, &member, "cannot run together", false},
	} {
		paths := PathsOf("/d", "")
		p := &Parts{paths: paths, identity: tc.identity, store: tc.store, log: &raftlog.Metadata{MemberID: 1, ClusterID: 0x34948525}}
		err := p.check()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) || IsDamage(err) != tc.damage {
			t.Errorf("%+v, %+v: %v, damage %v", tc.identity, tc.store, err, IsDamage(err))
		}
	}
}
