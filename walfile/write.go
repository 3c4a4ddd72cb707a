package walfile

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/internal/crc32c"
)

// A Start is what an etcd starts from: the state as of Snapshot, which is in its database, and what
// its log has beyond.
type Start struct {
	Member, Cluster uint64
	// Snapshot is the applied entry. REQUIRES: it has a configuration, unless Index is 0.
	Snapshot Position
	// HardState's commit is at Snapshot.Index or beyond.
	HardState *raftpb.HardState
	// Tail are the entries after Snapshot, without a gap.
	Tail []*raftpb.Entry
}

// Write makes a log in dir, which must not have one. The file and its name are durable when it
// returns.
func Write(dir string, s Start) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, fmt.Sprintf("%016x-%016x.wal", 0, 0))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w := writer{out: bufio.NewWriterSize(f, 1<<20)}
	w.put(typeCRC, nil)
	w.put(typeMetadata, numbers(s.Member, s.Cluster))
	w.put(typeSnapshot, numbers(0, 0))
	if s.Snapshot.Index > 0 {
		data := numbers(s.Snapshot.Index, s.Snapshot.Term)
		conf, cerr := proto.Marshal(s.Snapshot.ConfState)
		err = errors.Join(err, cerr)
		data = protowire.AppendTag(data, 3, protowire.BytesType)
		w.put(typeSnapshot, protowire.AppendBytes(data, conf))
	}
	for _, e := range s.Tail {
		data, merr := proto.Marshal(written(e))
		err = errors.Join(err, merr)
		w.put(typeEntry, data)
	}
	state, merr := proto.Marshal(&raftpb.HardState{Term: new(s.HardState.GetTerm()), Vote: new(s.HardState.GetVote()), Commit: new(s.HardState.GetCommit())})
	w.put(typeState, state)
	if err := errors.Join(err, merr, w.out.Flush(), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(dir)
}

// written is an entry with every number present, as etcd before 3.7 writes it.
func written(e *raftpb.Entry) *raftpb.Entry {
	return &raftpb.Entry{Type: e.GetType().Enum(), Term: new(e.GetTerm()), Index: new(e.GetIndex()), Data: e.GetData()}
}

type writer struct {
	out *bufio.Writer // keeps its first error
	crc uint32
}

func (w *writer) put(kind int64, data []byte) {
	w.crc = crc32c.Update(w.crc, data)
	b := protowire.AppendTag(nil, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(kind))
	b = protowire.AppendTag(b, 2, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(w.crc))
	if data != nil {
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendBytes(b, data)
	}
	length := uint64(len(b))
	if padding := -len(b) & 7; padding > 0 {
		length |= uint64(0x80|padding) << 56
		b = append(b, make([]byte, padding)...)
	}
	_, _ = w.out.Write(binary.LittleEndian.AppendUint64(nil, length)) // Flush tells
	_, _ = w.out.Write(b)
}

// numbers is a message of the fields 1, 2 and so on, zeros included.
func numbers(values ...uint64) []byte {
	var b []byte
	for i, v := range values {
		b = protowire.AppendTag(b, protowire.Number(i+1), protowire.VarintType)
		b = protowire.AppendVarint(b, v)
	}
	return b
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
