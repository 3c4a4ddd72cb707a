package walfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
)

func entry(index, term uint64, data string) *raftpb.Entry {
	return &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Index: new(index), Term: new(term), Data: []byte(data)}
}

// start is a log with a snapshot at 10 and ten entries after it.
func start() Start {
	s := Start{
		Member: 0xabc, Cluster: 0xdef,
		Snapshot:  Position{Index: 10, Term: 2, ConfState: &raftpb.ConfState{Voters: []uint64{0xabc, 5}, Learners: []uint64{7}}},
		HardState: &raftpb.HardState{Term: new(uint64(3)), Vote: new(uint64(5)), Commit: new(uint64(15))},
	}
	for i := uint64(11); i <= 20; i++ {
		s.Tail = append(s.Tail, entry(i, 3, fmt.Sprint("data", i)))
	}
	return s
}

func write(t *testing.T, s Start) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	if err := Write(dir, s); err != nil {
		t.Fatal(err)
	}
	return dir, filepath.Join(dir, fmt.Sprintf("%016x-%016x.wal", 0, 0))
}

func indexes(entries []*raftpb.Entry) (list []uint64) {
	for _, e := range entries {
		list = append(list, e.GetIndex())
	}
	return list
}

// TestRoundTrip: what was written is read, and a part of it where more was applied.
func TestRoundTrip(t *testing.T) {
	dir, _ := write(t, start())
	for _, applied := range []uint64{10, 14} {
		c, err := Read(dir, applied)
		if err != nil {
			t.Fatal(err)
		}
		if c.Member != 0xabc || c.Cluster != 0xdef || c.Snapshot.Index != 10 || !slices.Equal(c.Snapshot.ConfState.Learners, []uint64{7}) ||
			c.HardState.GetVote() != 5 || c.HardState.GetCommit() != 15 || c.Last != 20 || c.Torn != nil {
			t.Errorf("%+v", c)
		}
		if want := map[uint64]uint64{10: 2, 14: 3}[applied]; c.Term != want {
			t.Errorf("entry %d has term %d, want %d", applied, c.Term, want)
		}
		if got := indexes(c.Tail); uint64(len(got)) != 20-applied || got[0] != applied+1 {
			t.Errorf("after %d: %v", applied, got)
		}
	}
}

// TestReplacedEnd: an entry that comes again replaces what followed it, across segments too.
func TestReplacedEnd(t *testing.T) {
	s := start()
	s.Tail = append(s.Tail, entry(13, 4, "new"), entry(14, 4, "new"))
	dir, _ := write(t, s)
	for applied, term := range map[uint64]uint64{12: 3, 13: 4} {
		c, err := Read(dir, applied)
		if err != nil {
			t.Fatal(err)
		}
		if got := indexes(c.Tail); got[0] != applied+1 || got[len(got)-1] != 14 || c.Last != 14 || c.Term != term {
			t.Errorf("after %d: %v, term %d", applied, got, c.Term)
		}
	}
}

// TestDamage: bits all over a log are flipped. Nothing is read as something else. The checksum that
// the oldest file begins with, in the first 16 bytes, cannot be checked: it continues one that may
// be gone.
func TestDamage(t *testing.T) {
	dir, path := write(t, start())
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := Read(dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(good); i += 11 {
		b := slices.Clone(good)
		b[i] ^= 0x10
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Read(dir, 10)
		var damage *DamageError
		switch {
		case err == nil && c.Torn == nil && (!slices.EqualFunc(c.Tail, whole.Tail, func(a, b *raftpb.Entry) bool { return string(a.Data) == string(b.Data) }) || c.HardState.GetVote() != 5):
			// A length of zero ends a log: the top byte of a length may only change the padding.
			t.Errorf("byte %d: read as %v, %v", i, indexes(c.Tail), c.HardState)
		case err != nil && errors.As(err, &damage) && (damage.File != path || i >= 16 && damage.Offset > int64(i)):
			t.Errorf("byte %d: %v", i, err)
		}
	}
	// Cut anywhere it is a shorter log, or none.
	for n := 0; n < len(good); n += 13 {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := Read(dir, 10); err == nil && c.Last > 0 && len(c.Tail) > 0 && c.Tail[0].GetIndex() != 11 {
			t.Errorf("cut at %d: %v", n, indexes(c.Tail))
		}
	}
}

// TestSnapshotFile: membership in the form of etcd's old store comes back.
func TestSnapshotFile(t *testing.T) {
	dir, p := t.TempDir(), start().Snapshot
	members := []*command.Member{{ID: 0xabc, Name: "m1", PeerURLs: []string{"http://a:1"}, ClientURLs: []string{"http://a:2"}}, {ID: 7, PeerURLs: []string{"http://b:1"}, IsLearner: true}}
	if err := WriteSnapshot(dir, p, Membership{Members: members, Removed: []uint64{9}, Version: "3.5.0"}); err != nil {
		t.Fatal(err)
	}
	got, list, err := ReadSnapshot(dir, Position{Index: p.Index, Term: p.Term})
	if err != nil || !slices.Equal(got.ConfState.Voters, p.ConfState.Voters) || len(list) != 2 {
		t.Fatal(got, list, err)
	}
	slices.SortFunc(list, func(a, b *command.Member) int { return len(b.Name) - len(a.Name) })
	for i, m := range members {
		if fmt.Sprint(*list[i]) != fmt.Sprint(*m) {
			t.Errorf("%+v, want %+v", *list[i], *m)
		}
	}
	path := filepath.Join(dir, SnapshotName(p))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadSnapshot(dir, p); err == nil {
		t.Error("a damaged file is read")
	}
}
