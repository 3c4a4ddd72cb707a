package state

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/store"
)

// rig is a machine over a store in memory, that can be closed and opened again.
type rig struct {
	t      testing.TB
	fs     vfs.FS
	cfg    Config
	events []string    // what the sink was told
	logger *zap.Logger // mvcc's

	st     *store.Store
	kv     *mvcc.Store
	leases *lease.Table
	*Machine
}

func newRig(t testing.TB, cfg Config) *rig {
	r := &rig{t: t, fs: vfs.NewMem(), cfg: cfg}
	if cfg.MemberID == 0 {
		r.cfg.MemberID, r.cfg.ClusterID = 1, 0xc1
	}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	if r.st, err = store.Open("db", store.Options{FS: r.fs}); err != nil {
		r.t.Fatal(err)
	}
	if r.kv, err = mvcc.Open(r.st, mvcc.Options{Logger: r.logger}); err != nil {
		r.t.Fatal(err)
	}
	clock := func() time.Time { return time.Unix(1_700_000_000, 0) }
	if r.leases, err = lease.Open(r.st, lease.Options{MinTTL: 2, Clock: clock}); err != nil {
		r.t.Fatal(err)
	}
	cfg := r.cfg
	cfg.Store, cfg.KV, cfg.Leases, cfg.Sink = r.st, r.kv, r.leases, r
	if r.Machine, err = Open(cfg); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) close() {
	r.kv.Close()
	if err := r.st.Close(); err != nil {
		r.t.Error(err)
	}
}

// reopen restarts the machine with everything that was applied.
func (r *rig) reopen() {
	r.t.Helper()
	_, done, err := r.Flush(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	<-done
	r.crash()
}

// crash restarts it with what happens to be durable.
func (r *rig) crash() {
	r.close()
	r.open()
}

// Notify is the sink. It asserts that what it is told of can be read already.
func (r *rig) Notify(rev int64, events []*mvccpb.Event) {
	if r.kv.Revision() < rev {
		r.t.Errorf("told of revision %d while readers see %d", rev, r.kv.Revision())
	}
	for _, e := range events {
		if e.Kv.ModRevision != rev {
			r.t.Errorf("event of revision %d among those of %d", e.Kv.ModRevision, rev)
		}
		r.events = append(r.events, fmt.Sprintf("%d %s %s", rev, e.Type, text(e.Kv)))
	}
}

// next makes entries of the requests that come after what is applied.
func (r *rig) next(requests ...*pb.InternalRaftRequest) []command.Entry {
	index, _ := r.Applied()
	entries := make([]command.Entry, len(requests))
	for i, req := range requests {
		entries[i] = command.Entry{Index: index + 1 + uint64(i), Term: 1, Request: req}
	}
	return entries
}

func (r *rig) do(req *pb.InternalRaftRequest) command.Result { return r.Apply(r.next(req))[0] }

func (r *rig) change(c *command.Change) command.Result {
	index, _ := r.Applied()
	return r.ApplyChange(command.Entry{Index: index + 1, Term: 1, Change: c, Refused: r.CheckChange(c)})
}

func (r *rig) hashKV(rev int64) string {
	r.t.Helper()
	hash, compact, current, err := r.kv.HashKV(context.Background(), rev)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%08x compact %d current %d", hash, compact, current)
}

// dump is everything in the store, key by key, but for revisions that a compaction has not yet
// removed everywhere.
func (r *rig) dump() string {
	r.t.Helper()
	var out strings.Builder
	for _, span := range []func() (lower, upper []byte){store.LeasesSpan, store.AllLeaseAttachmentsSpan, store.MembersSpan, store.RemovedMembersSpan, store.AlarmsSpan} {
		if err := eachKey(r.st, span, func(key, value []byte) error {
			fmt.Fprintf(&out, "%q = %q\n", key, value)
			return nil
		}); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, name := range []string{clusterVersionName, downgradeName} {
		b, _, err := r.st.Get(store.ClusterKey(name))
		if err != nil {
			r.t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s = %q\n", name, b)
	}
	return out.String()
}

// checkAttachments holds the leases' attachments against the keys.
func (r *rig) checkAttachments() {
	r.t.Helper()
	rr, err := r.kv.Range(context.Background(), []byte{0}, []byte{0}, mvcc.RangeOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	want := map[string]int64{}
	for _, kv := range rr.KVs {
		if kv.Lease != 0 {
			want[string(kv.Key)] = kv.Lease
			if !r.leases.Exists(lease.ID(kv.Lease)) {
				r.t.Errorf("key %q hangs on lease %d, which is gone", kv.Key, kv.Lease)
			}
		}
	}
	n := 0
	for _, info := range r.leases.List() {
		keys, err := r.leases.Keys(r.st, info.ID)
		if err != nil {
			r.t.Fatal(err)
		}
		for i, key := range keys {
			n++
			if want[string(key)] != int64(info.ID) {
				r.t.Errorf("lease %d lists key %q, which hangs on %d", info.ID, key, want[string(key)])
			}
			if i > 0 && bytes.Compare(keys[i-1], key) >= 0 {
				r.t.Errorf("keys of lease %d out of order", info.ID)
			}
		}
	}
	if n != len(want) {
		r.t.Errorf("%d attachments for %d keys with a lease", n, len(want))
	}
}

// text is a message in prototext without its deliberately unstable spaces.
func text(m proto.Message) string {
	b, err := prototext.MarshalOptions{}.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func resultText(res command.Result) string {
	var parts []string
	if res.Response != nil {
		parts = append(parts, string(res.Response.ProtoReflect().Descriptor().Name())+"{"+text(res.Response)+"}")
	}
	if res.Err != nil {
		parts = append(parts, "error: "+res.Err.Error())
	}
	if res.Members != nil {
		parts = append(parts, membersText(res.Members))
	}
	if parts == nil {
		return "-"
	}
	return strings.Join(parts, " ")
}

func membersText(members []*command.Member) string {
	var parts []string
	for _, m := range members {
		s := fmt.Sprintf("%x%v", m.ID, m.PeerURLs)
		if m.IsLearner {
			s += " learner"
		}
		if m.Name != "" {
			s += fmt.Sprintf(" %s%v", m.Name, m.ClientURLs)
		}
		parts = append(parts, s)
	}
	return "members: " + strings.Join(parts, ", ")
}

func put(key, value string) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 1}, Put: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}
}

// panicLogger is a logger whose fatal lines panic instead of ending the process, as they do without
// a logger.
func panicLogger(logger *zap.Logger) *zap.Logger {
	return logger.WithOptions(zap.WithFatalHook(zapPanic{}))
}
