package walfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/crc32c"
)

// SnapshotName is the name of the .snap file of a position.
func SnapshotName(p Position) string { return fmt.Sprintf("%016x-%016x.snap", p.Term, p.Index) }

// ReadSnapshot reads the .snap file of a position in dir, and returns it with its configuration and
// with the members that the file knows.
func ReadSnapshot(dir string, p Position) (Position, []*command.Member, error) {
	path := filepath.Join(dir, SnapshotName(p))
	b, err := os.ReadFile(path)
	if err != nil {
		return p, nil, err
	}
	damage := func(format string, args ...any) error {
		return &DamageError{File: path, Reason: fmt.Sprintf(format, args...)}
	}
	var crc uint64
	var data []byte
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return p, nil, damage("%v", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case num == 1 && kind == protowire.VarintType:
			crc, n = protowire.ConsumeVarint(b)
		case num == 2 && kind == protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, kind, b)
		}
		if n < 0 {
			return p, nil, damage("%v", protowire.ParseError(n))
		}
		b = b[n:]
	}
	if crc32c.Checksum(data) != uint32(crc) {
		return p, nil, damage("its checksum does not fit")
	}
	snapshot := new(raftpb.Snapshot)
	if err := proto.Unmarshal(data, snapshot); err != nil {
		return p, nil, damage("%v", err)
	}
	m := snapshot.GetMetadata()
	if m.GetIndex() != p.Index || m.GetTerm() != p.Term {
		return p, nil, damage("it is of entry %d of term %d", m.GetIndex(), m.GetTerm())
	}
	p.ConfState = m.GetConfState()
	members, err := readMembership(snapshot.GetData())
	if err != nil {
		return p, nil, damage("%v", err)
	}
	return p, members, nil
}

// Membership is what a .snap file holds besides the position.
type Membership struct {
	Members []*command.Member
	Removed []uint64
	Version string // of the cluster; empty: not decided yet
}

// WriteSnapshot makes the .snap file of a position, durably.
func WriteSnapshot(dir string, p Position, m Membership) error {
	content, err := m.Encode()
	if err != nil {
		return err
	}
	data, err := proto.Marshal(&raftpb.Snapshot{
		Data:     content,
		Metadata: &raftpb.SnapshotMetadata{ConfState: p.ConfState, Index: new(p.Index), Term: new(p.Term)},
	})
	if err != nil {
		return err
	}
	b := protowire.AppendTag(nil, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(crc32c.Checksum(data)))
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendBytes(b, data)
	f, err := os.OpenFile(filepath.Join(dir, SnapshotName(p)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return SyncDir(dir)
}

// A node is one of etcd's old tree of directories and values (its API of version 2), which lives on
// in these files: /0/members/ID/raftAttributes and attributes, /0/removed_members/ID, /0/version.
type node struct {
	Path                        string
	CreatedIndex, ModifiedIndex uint64
	ExpireTime                  string
	Value                       string
	Children                    map[string]*node
}

const noExpiry = "0001-01-01T00:00:00Z"

func (n *node) folder(name string) *node {
	path := n.Path + "/" + name
	if n.Path == "/" {
		path = "/" + name
	}
	child := &node{Path: path, ExpireTime: noExpiry, Children: map[string]*node{}}
	n.Children[name] = child
	return child
}

func (n *node) value(name, value string) {
	n.Children[name] = &node{Path: n.Path + "/" + name, ExpireTime: noExpiry, Value: value}
}

type raftAttributes struct {
	PeerURLs  []string `json:"peerURLs"`
	IsLearner bool     `json:"isLearner,omitempty"`
}

type attributes struct {
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// eventCapacity is what etcd's own files say; it indexes into a list of this length.
const eventCapacity = 1000

// Encode is the data of raft's snapshot: in a .snap file, and in the message that brings a snapshot.
func (m Membership) Encode() ([]byte, error) {
	root := &node{Path: "/", ExpireTime: noExpiry, Children: map[string]*node{}}
	cluster := root.folder("0")
	root.folder("1")
	members := cluster.folder("members")
	for _, member := range m.Members {
		folder := members.folder(command.IDText(member.ID))
		for name, content := range map[string]any{
			"raftAttributes": raftAttributes{member.PeerURLs, member.IsLearner},
			"attributes":     attributes{member.Name, member.ClientURLs},
		} {
			text, err := json.Marshal(content)
			if err != nil {
				return nil, err
			}
			folder.value(name, string(text))
		}
	}
	if len(m.Removed) > 0 {
		removed := cluster.folder("removed_members")
		for _, id := range m.Removed {
			removed.value(command.IDText(id), "removed")
		}
	}
	if m.Version != "" {
		cluster.value("version", m.Version)
	}
	type queue struct {
		Events                      [eventCapacity]*struct{}
		Size, Front, Back, Capacity int
	}
	type history struct {
		Queue                 queue
		StartIndex, LastIndex uint64
	}
	type hub struct{ EventHistory history }
	return json.Marshal(struct {
		Root           *node
		WatcherHub     hub
		CurrentIndex   uint64
		Stats          map[string]uint64
		CurrentVersion int
	}{root, hub{history{Queue: queue{Capacity: eventCapacity}}}, 0, map[string]uint64{}, 2})
}

func readMembership(data []byte) ([]*command.Member, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var tree struct{ Root *node }
	if err := json.Unmarshal(data, &tree); err != nil {
		return nil, err
	}
	n := tree.Root
	for _, name := range []string{"0", "members"} {
		if n == nil {
			return nil, nil
		}
		n = n.Children[name]
	}
	var members []*command.Member
	if n == nil {
		return nil, nil
	}
	for name, folder := range n.Children {
		id, err := strconv.ParseUint(name, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("member %q: %w", name, err)
		}
		var r raftAttributes
		var a attributes
		for child, to := range map[string]any{"raftAttributes": &r, "attributes": &a} {
			if c := folder.Children[child]; c != nil {
				if err := json.Unmarshal([]byte(c.Value), to); err != nil {
					return nil, fmt.Errorf("member %q: %w", name, err)
				}
			}
		}
		members = append(members, &command.Member{ID: id, PeerURLs: r.PeerURLs, IsLearner: r.IsLearner, Name: a.Name, ClientURLs: a.ClientURLs})
	}
	return members, nil
}
