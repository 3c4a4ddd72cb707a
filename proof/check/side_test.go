package check

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/belaydb/belay/proof/cluster"
)

// A side is one of the two servers that are compared, with the raw gRPC stubs
// (clientv3 would retry and rewrite) and the names of what it calls its own.
//
// Requests and answers are written in symbols: a number in place of a lease id or member id that
// the server made up. Requests are translated from symbols to this side's real ids before they are
// sent, answers back before they are compared.
type side struct {
	member *cluster.Member
	conn   *grpc.ClientConn

	kv      pb.KVClient
	lease   pb.LeaseClient
	watch   pb.WatchClient
	members pb.ClusterClient
	maint   pb.MaintenanceClient

	leases  names[int64]
	ids     names[uint64]
	streams map[int]*watchStream
}

// Symbols of ids. Leases given by the server count up from symLease.
const (
	symLease   = int64(1) << 40
	symSelf    = uint64(1001)
	symLearner = uint64(1002)
)

// names is a one-to-one translation between symbols and real ids.
type names[T comparable] struct{ real, symbol map[T]T }

func (n *names[T]) add(symbol, real T) {
	if n.real == nil {
		n.real, n.symbol = make(map[T]T), make(map[T]T)
	}
	n.real[symbol], n.symbol[real] = real, symbol
}

func newSide(m *cluster.Member) (*side, error) {
	conn, err := m.Dial()
	if err != nil {
		return nil, err
	}
	s := &side{
		member:  m,
		conn:    conn,
		kv:      pb.NewKVClient(conn),
		lease:   pb.NewLeaseClient(conn),
		watch:   pb.NewWatchClient(conn),
		members: pb.NewClusterClient(conn),
		maint:   pb.NewMaintenanceClient(conn),
		streams: make(map[int]*watchStream),
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := s.members.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("member list of %s: %w", m.Name, err)
	}
	s.ids.add(symSelf, list.Members[0].ID)
	return s, nil
}

func (s *side) close() {
	for _, w := range s.streams {
		w.cancel()
	}
	s.conn.Close()
}

// real translates a request from symbols to this side's ids.
func real[M proto.Message](s *side, m M) M {
	c := proto.Clone(m).(M)
	rewrite(c.ProtoReflect(), s.leases.real, s.ids.real, func(text string) string {
		return strings.ReplaceAll(text, "self:peer", s.member.PeerURL)
	})
	return c
}

// symbolic translates an answer from this side's ids to symbols and clears
// what no two servers share.
func (s *side) symbolic(m proto.Message) proto.Message {
	c := proto.Clone(m)
	rewrite(c.ProtoReflect(), s.leases.symbol, s.ids.symbol, func(text string) string {
		text = strings.ReplaceAll(text, s.member.PeerURL, "self:peer")
		text = strings.ReplaceAll(text, s.member.ClientURL, "self:client")
		for symbol, id := range s.ids.real {
			text = strings.ReplaceAll(text, fmt.Sprint(id), fmt.Sprint("id", symbol))
			text = strings.ReplaceAll(text, fmt.Sprintf("%x", id), fmt.Sprint("id", symbol))
		}
		return text
	})
	switch c := c.(type) {
	case *pb.StatusResponse:
		c.RaftIndex, c.RaftAppliedIndex, c.RaftTerm = 0, 0, 0
		if c.StorageVersion != "" {
			c.StorageVersion = "some" // etcd's first seconds are spent at 3.5.0
		}
		for i, text := range c.Errors {
			// Printed from a message: protobuf spaces it differently from binary to binary.
			c.Errors[i] = strings.Join(strings.Fields(text), " ")
		}
		c.DbSize, c.DbSizeInUse = min(c.DbSize, 1), min(c.DbSizeInUse, 1)
		if major, rest, ok := strings.Cut(c.Version, "."); ok {
			minor, _, _ := strings.Cut(rest, ".")
			c.Version = major + "." + minor
		}
	case *pb.MemberListResponse:
		sortMembers(c.Members)
	case *pb.MemberAddResponse:
		sortMembers(c.Members)
	case *pb.MemberRemoveResponse:
		sortMembers(c.Members)
	case *pb.MemberUpdateResponse:
		sortMembers(c.Members)
	}
	return c
}

// Servers order members by id, which says nothing here.
func sortMembers(ms []*pb.Member) {
	for i := range ms {
		for j := i; j > 0 && strings.Join(ms[j].PeerURLs, ",") < strings.Join(ms[j-1].PeerURLs, ","); j-- {
			ms[j], ms[j-1] = ms[j-1], ms[j]
		}
	}
}

// rewrite walks a message and replaces numbers and texts in place.
func rewrite(m protoreflect.Message, leases map[int64]int64, ids map[uint64]uint64, text func(string) string) {
	value := func(fd protoreflect.FieldDescriptor, v protoreflect.Value) (protoreflect.Value, bool) {
		switch fd.Kind() {
		case protoreflect.MessageKind:
			rewrite(v.Message(), leases, ids, text)
		case protoreflect.Int64Kind:
			if to, ok := leases[v.Int()]; ok {
				return protoreflect.ValueOfInt64(to), true
			}
		case protoreflect.Uint64Kind:
			if to, ok := ids[v.Uint()]; ok {
				return protoreflect.ValueOfUint64(to), true
			}
		case protoreflect.StringKind:
			if to := text(v.String()); to != v.String() {
				return protoreflect.ValueOfString(to), true
			}
		}
		return v, false
	}
	if h, ok := m.Interface().(*pb.ResponseHeader); ok {
		h.ClusterId, h.RaftTerm = 0, 0
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.IsMap() {
			return true
		}
		if fd.IsList() {
			for i := range v.List().Len() {
				if nv, changed := value(fd, v.List().Get(i)); changed {
					v.List().Set(i, nv)
				}
			}
			return true
		}
		if nv, changed := value(fd, v); changed {
			m.Set(fd, nv)
		}
		return true
	})
}

// watchStream reads one Watch stream and keeps what came, for each watch: the
// cut of the events into responses is the server's affair, their order is not.
type watchStream struct {
	side   *side
	stream pb.Watch_WatchClient
	cancel context.CancelFunc

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each arrival
	created  []*pb.WatchResponse
	canceled map[int64]int
	lines    map[int64][]string // per watch: its events, and its end
	lastRev  map[int64]int64
	progress []*pb.WatchResponse
	faults   []string // broken promises that need no other side to be seen
	err      error
}

// openStream opens Watch stream n. parent outlives the stream; it has the caller's credentials, if
// any.
func (s *side) openStream(parent context.Context, n int) error {
	ctx, cancel := context.WithCancel(parent)
	stream, err := s.watch.Watch(ctx)
	if err != nil {
		cancel()
		return err
	}
	w := &watchStream{
		side: s, stream: stream, cancel: cancel,
		changed:  make(chan struct{}),
		canceled: make(map[int64]int),
		lines:    make(map[int64][]string),
		lastRev:  make(map[int64]int64),
	}
	s.streams[n] = w
	go w.read()
	return nil
}

func (w *watchStream) read() {
	for {
		resp, err := w.stream.Recv()
		w.mu.Lock()
		if err != nil {
			if err != io.EOF {
				w.err = err
			}
			close(w.changed)
			w.changed = make(chan struct{})
			w.mu.Unlock()
			return
		}
		id := resp.WatchId
		switch {
		case resp.Created:
			w.created = append(w.created, resp)
			if !resp.Canceled {
				if len(w.lines[id]) > 0 && !strings.HasPrefix(w.lines[id][len(w.lines[id])-1], "canceled") {
					w.faults = append(w.faults, fmt.Sprintf("watch %d: events before its created answer", id))
				}
				w.lastRev[id] = 0
			}
		case resp.Canceled:
			w.canceled[id]++
			c := w.side.symbolic(resp).(*pb.WatchResponse)
			w.lines[id] = append(w.lines[id], "canceled "+oneLine(c))
		case id == -1 && len(resp.Events) == 0:
			w.progress = append(w.progress, resp)
		}
		for _, ev := range resp.Events {
			// A fragmented answer may split a revision; any other may not.
			if rev := ev.Kv.ModRevision; rev < w.lastRev[id] {
				w.faults = append(w.faults, fmt.Sprintf("watch %d: revision %d after %d", id, rev, w.lastRev[id]))
			} else {
				w.lastRev[id] = rev
			}
			w.lines[id] = append(w.lines[id], oneLine(w.side.symbolic(ev).(*mvccpb.Event)))
		}
		close(w.changed)
		w.changed = make(chan struct{})
		w.mu.Unlock()
	}
}

// wait calls done under the lock after each arrival until it says true.
func (w *watchStream) wait(what string, d time.Duration, done func() bool) error {
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	for {
		w.mu.Lock()
		ok, err, changed := done(), w.err, w.changed
		w.mu.Unlock()
		if ok {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: waiting for %s: %w", w.side.member.Name, what, err)
		}
		select {
		case <-changed:
		case <-deadline.C:
			return fmt.Errorf("%s %s: no %s within %v", w.side.member.Name, w.side.member.Endpoint(), what, d)
		}
	}
}

// oneLine prints a message on one line, stable within one binary.
func oneLine(m proto.Message) string {
	return strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(m)), " ")
}
