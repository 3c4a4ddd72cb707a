package datadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
)

// sentByEtcd is a database with everything in it, and the metadata of its message.
func sentByEtcd(t *testing.T, change func(*snapshotfile.Content)) ([]byte, *raftpb.SnapshotMetadata) {
	t.Helper()
	c := snapshotfile.Content{
		Index: 4200, Term: 7, For: 6, CompactRev: 3, ClusterVersion: "3.6.0", Downgrade: []byte(`{"target-version":"3.5.0","enabled":true}`),
		ConfState: &raftpb.ConfState{Voters: []uint64{0xa, 0xb}, Learners: []uint64{0xc}},
		Members: []*command.Member{
			{ID: 0xa, PeerURLs: []string{"http://a:1"}, Name: "a", ClientURLs: []string{"http://a:2"}},
			{ID: 0xb, PeerURLs: []string{"http://b:1"}}, {ID: 0xc, PeerURLs: []string{"http://c:1"}, IsLearner: true},
		},
		Removed: []uint64{0xd},
		Alarms:  []*pb.AlarmMember{{MemberID: 0xa, Alarm: pb.AlarmType_NOSPACE}},
		Leases: func(each func(id, ttl, remaining int64) error) error {
			return errors.Join(each(7, 600, 0), each(8, 900, 300))
		},
		Auth: func(each func(bucket, name string, value []byte) error) error {
			return errors.Join(each("auth", "authEnabled", []byte{1}), each("auth", "authRevision", []byte{0, 0, 0, 0, 0, 0, 0, 9}))
		},
		Revisions: func(_ context.Context, each func(main, sub int64, tombstone bool, value []byte) error) error {
			for i := range int64(500) {
				kv := &mvccpb.KeyValue{Key: fmt.Appendf(nil, "key%08d", i), Value: bytes.Repeat([]byte{byte(i)}, 100), CreateRevision: i + 2, ModRevision: i + 2, Version: 1}
				if i%100 == 0 {
					kv.Lease = 8
				}
				b, err := proto.Marshal(kv)
				if err := errors.Join(err, each(i+2, 0, false, b)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	if change != nil {
		change(&c)
	}
	f, err := snapshotfile.Create(t.Context(), t.TempDir(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f.Reader())
	if err != nil {
		t.Fatal(err)
	}
	return b, &raftpb.SnapshotMetadata{Index: new(uint64(4200)), Term: new(uint64(7)), ConfState: c.ConfState}
}

func plenty() (uint64, error) { return 1 << 40, nil }

// TestReceive: what etcd's database says is in the store: keys, leases, who is a member, alarms,
// versions, and the entry up to which all that is.
func TestReceive(t *testing.T) {
	body, meta := sentByEtcd(t, nil)
	dir := t.TempDir()
	st, err := Receive(t.Context(), dir, bytes.NewReader(body), meta, plenty)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := os.Stat(filepath.Join(dir, "db")); !os.IsNotExist(err) {
		t.Errorf("the database is still there: %v", err)
	}
	if index, term := st.Applied(); index != 4200 || term != 7 {
		t.Errorf("applied entry %d of term %d", index, term)
	}
	view := mvcc.ReadView(st)
	defer view.Close()
	hash, err := view.HashState(t.Context(), 501)
	if err != nil || view.Rev() != 501 || view.CompactRevision() != 3 {
		t.Errorf("revision %d, compacted at %d, %v", view.Rev(), view.CompactRevision(), err)
	}
	path := filepath.Join(dir, "db")
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := snapshotfile.Read(path, true, func(f *snapshotfile.Reader) error {
		if want, _, _, err := f.HashKV(501); err != nil || want != hash {
			t.Errorf("hash %x, of the database %x, %v", hash, want, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s, err := state.ReadStored(view.Reader())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Members) != 3 || !s.Members[2].IsLearner || s.Members[0].Name != "a" || len(s.Removed) != 1 || len(s.Alarms) != 1 ||
		s.Version.String() != "3.6.0" || s.Downgrade.TargetVersion != "3.5.0" || !proto.Equal(s.ConfState, meta.ConfState) {
		t.Errorf("%+v", s)
	}
	leases := ""
	if err := lease.Records(view.Reader(), func(id lease.ID, ttl, remaining int64) error {
		leases += fmt.Sprint(id, ttl, remaining, ";")
		return nil
	}); err != nil || leases != "7 600 0;8 900 300;" {
		t.Errorf("leases %s %v", leases, err)
	}
}

// TestReceiveRefuses: what is broken, or not what the message says, is never made a store.
func TestReceiveRefuses(t *testing.T) {
	t.Parallel()
	refused := func(what, why string, body io.Reader, meta *raftpb.SnapshotMetadata, free func() (uint64, error)) {
		t.Helper()
		st, err := Receive(t.Context(), t.TempDir(), body, meta, free)
		if err == nil {
			st.Close()
			t.Errorf("%s: taken", what)
		} else if !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", what, err)
		}
	}
	body, meta := sentByEtcd(t, nil)
	for _, n := range []int{0, 100, 4096, 8192, len(body) / 2, len(body) - 1} {
		refused(fmt.Sprint("cut off after ", n), "", bytes.NewReader(body[:n]), meta, plenty)
	}
	refused("a connection that breaks", "unexpected EOF", io.MultiReader(bytes.NewReader(body), broken{}), meta, plenty)
	for page := 2; page < len(body)/4096; page++ {
		if bytes.Equal(body[page*4096:page*4096+16], make([]byte, 16)) {
			continue // no page begins there
		}
		b := bytes.Clone(body)
		clear(b[page*4096 : page*4096+64])
		if st, err := Receive(t.Context(), t.TempDir(), bytes.NewReader(b), meta, plenty); err == nil {
			st.Close() // a page that nothing leads to any more, or the middle of a value
		}
	}
	for what, change := range map[string]func(*raftpb.SnapshotMetadata){
		"another entry":         func(m *raftpb.SnapshotMetadata) { m.Index = new(uint64(4201)) },
		"another term":          func(m *raftpb.SnapshotMetadata) { m.Term = new(uint64(8)) },
		"a member nobody knows": func(m *raftpb.SnapshotMetadata) { m.ConfState.Voters = append(m.ConfState.Voters, 0xe) },
		"a member that is none": func(m *raftpb.SnapshotMetadata) { m.ConfState.Voters = m.ConfState.Voters[:1] },
	} {
		other := proto.CloneOf(meta)
		change(other)
		refused(what, "", bytes.NewReader(body), other, plenty)
	}
	newer, _ := sentByEtcd(t, func(c *snapshotfile.Content) { c.For = 9 })
	refused("a newer schema", "storage version 3.9.0", bytes.NewReader(newer), meta, plenty)
	refused("no room", "MiB free", bytes.NewReader(body), meta, func() (uint64, error) { return ReceiveRoom - 1, nil })
	looks := 0
	refused("no room for the store", "MiB free", bytes.NewReader(body), meta, func() (uint64, error) {
		if looks++; looks > 1 {
			return ReceiveRoom - 1, nil
		}
		return plenty()
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Receive(ended, t.TempDir(), bytes.NewReader(body), meta, plenty); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// broken is the end of a body whose connection broke.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
