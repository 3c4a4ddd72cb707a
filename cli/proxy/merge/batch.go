package merge

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A Message is one response for a client: either Control, or events.
type Message struct {
	Control *pb.WatchResponse // not changed any more
	WatchID int64
	Header  []byte // encoded
	Batch   *Batch
	// Fragment: it may be split.
	Fragment bool
}

// Size is about what the message takes in memory.
func (m *Message) Size() int {
	const overhead = 128
	if m.Batch != nil {
		return overhead + len(m.Batch.Events)
	}
	return overhead + len(m.Control.CancelReason)
}

// A Batch is events as they stand in a WatchResponse. It is shared by all clients that get them.
type Batch struct {
	Events []byte
	// Ends are where each event ends.
	Ends []int
}

// Fields of WatchResponse.
const (
	headerField   protowire.Number = 1
	watchIDField  protowire.Number = 2
	fragmentField protowire.Number = 7
	eventsField   protowire.Number = 11
)

func newBatch(events []*mvccpb.Event) (*Batch, error) {
	b := &Batch{}
	for _, e := range events {
		encoded, err := proto.Marshal(e)
		if err != nil {
			return nil, err
		}
		b.Events = protowire.AppendTag(b.Events, eventsField, protowire.BytesType)
		b.Events = protowire.AppendBytes(b.Events, encoded)
		b.Ends = append(b.Ends, len(b.Events))
	}
	return b, nil
}

// Frames calls each with the parts of a WatchResponse: head and then body. There are several if the
// message may be split and is larger than limit bytes; all but the last say that more follows.
func (m *Message) Frames(limit int, each func(head, body []byte) error) error {
	if m.Control != nil {
		b, err := proto.Marshal(m.Control)
		if err != nil {
			return err
		}
		return each(b, nil)
	}
	head := protowire.AppendTag(nil, headerField, protowire.BytesType)
	head = protowire.AppendBytes(head, m.Header)
	if m.WatchID != 0 {
		head = protowire.AppendTag(head, watchIDField, protowire.VarintType)
		head = protowire.AppendVarint(head, uint64(m.WatchID))
	}
	if !m.Fragment || len(head)+len(m.Batch.Events) < limit {
		return each(head, m.Batch.Events)
	}
	more := protowire.AppendVarint(protowire.AppendTag(append([]byte(nil), head...), fragmentField, protowire.VarintType), 1)
	from := 0
	for i, end := range m.Batch.Ends {
		last := i == len(m.Batch.Ends)-1
		if !last && len(more)+m.Batch.Ends[i+1]-from < limit {
			continue
		}
		h := more
		if last {
			h = head
		}
		if err := each(h, m.Batch.Events[from:end]); err != nil {
			return err
		}
		from = end
	}
	return nil
}
