package datadir

import (
	"errors"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
)

// What --force-new-cluster makes of the end of a log. A removal of the member itself that nobody
// committed once made a member that could never start again.
func TestEndOfAForcedLog(t *testing.T) {
	const own, other, third = 1, 2, 3
	change := func(index uint64, c command.Change) *raftpb.Entry {
		data, err := proto.Marshal(c.Encode())
		if err != nil {
			t.Fatal(err)
		}
		return &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(2)), Index: new(index), Data: data}
	}
	put := func(index uint64) *raftpb.Entry {
		return &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(uint64(2)), Index: new(index), Data: []byte("put")}
	}
	remove := func(id uint64) command.Change {
		return command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: id}
	}
	entries := []*raftpb.Entry{
		put(10), change(11, command.Change{Type: raftpb.ConfChangeAddNode, MemberID: third, Member: command.Member{ID: third, PeerURLs: []string{"http://c"}}}),
		change(12, remove(own)), put(13), change(14, remove(other)),
	}

	if end, err := withoutRemovalOf(other+10, 0, entries); end != nil || err != nil {
		t.Errorf("%v, %v", end, err)
	}
	if _, err := withoutRemovalOf(own, 12, entries); !errors.Is(err, errForceRemoved) {
		t.Errorf("a committed removal: %v", err)
	}
	end, err := withoutRemovalOf(own, 11, entries)
	if err != nil || len(end) != 3 {
		t.Fatalf("%v, %v", end, err)
	}
	for i, e := range end {
		if e.GetIndex() != uint64(12+i) || e.GetTerm() != 2 {
			t.Errorf("entry %d: %v", i, e)
		}
	}
	if end[0].GetType() != raftpb.EntryNormal || len(end[0].GetData()) > 0 || !proto.Equal(end[1], entries[3]) {
		t.Errorf("%v", end)
	}

	members := map[uint64]*command.Member{own: {ID: own}, other: {ID: other}}
	if err := foldChanges(members, append(slices.Clone(entries[:2]), end...)); err != nil {
		t.Fatal(err)
	}
	alone, err := changesToAlone(members, own, "a", nil)
	if err != nil || len(alone) != 1 {
		t.Fatalf("%v, %v", alone, err)
	}
	if c, err := changeOf(alone[0]); err != nil || c.Type != raftpb.ConfChangeRemoveNode || c.MemberID != third {
		t.Errorf("%v, %v", c, err)
	}
}
