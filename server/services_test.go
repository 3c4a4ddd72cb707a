package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/server/lockpb"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
)

func (m *member) checkHeader(h *pb.ResponseHeader, rev int64) {
	m.t.Helper()
	want := &pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: m.replica.Term(), Revision: rev}
	if !proto.Equal(h, want) {
		m.t.Fatalf("header %v, want %v", h, want)
	}
}

func TestKV(t *testing.T) {
	m := newMember(t)
	ctx := t.Context()
	m.checkHeader(m.put("a", "1").Header, 2)
	m.put("b", "2")
	resp, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("3"), PrevKv: true})
	must(t, err)
	m.checkHeader(resp.Header, 4)
	if string(resp.PrevKv.Value) != "1" {
		t.Fatalf("prev_kv %v", resp.PrevKv)
	}

	got, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("\x00"), Revision: 3})
	must(t, err)
	m.checkHeader(got.Header, 4) // the store's revision, not the one asked for
	if got.Count != 2 || string(got.Kvs[0].Value) != "1" {
		t.Fatalf("%v", got)
	}

	txn, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(opPut("c"), opPut("d"))})
	must(t, err)
	m.checkHeader(txn.Header, 5)
	if h := txn.Responses[0].GetResponsePut().Header; h.Revision != 5 || h.ClusterId != 0 || h.RaftTerm != 0 {
		t.Fatalf("a nested header has only the revision: %v", h)
	}

	del, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("c"), RangeEnd: []byte("z")})
	must(t, err)
	m.checkHeader(del.Header, 6)
	if del.Deleted != 2 {
		t.Fatalf("%v", del)
	}
	del, err = m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("none")})
	must(t, err)
	m.checkHeader(del.Header, 6)

	compact, err := m.kv.Compact(ctx, &pb.CompactionRequest{Revision: 5, Physical: true})
	must(t, err)
	m.checkHeader(compact.Header, 6)
}

func TestKVErrors(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) { c.MaxTxnOps = 2 })
	ctx := t.Context()
	m.put("a", "1")
	m.put("a", "2")
	_, err := m.kv.Compact(ctx, &pb.CompactionRequest{Revision: 3})
	must(t, err)
	const compacted, future = "etcdserver: mvcc: required revision has been compacted", "etcdserver: mvcc: required revision is a future revision"
	a := []byte("a")
	put := func(r *pb.PutRequest) func() error {
		return func() error { _, err := m.kv.Put(ctx, r); return err }
	}
	get := func(r *pb.RangeRequest) func() error {
		return func() error { _, err := m.kv.Range(ctx, r); return err }
	}
	txn := func(r *pb.TxnRequest) func() error {
		return func() error { _, err := m.kv.Txn(ctx, r); return err }
	}
	cases := []struct {
		name string
		call func() error
		code codes.Code
		text string
	}{
		{"put without key", put(&pb.PutRequest{}), codes.InvalidArgument, textEmptyKey},
		{"ignore_value with a value", put(&pb.PutRequest{Key: a, IgnoreValue: true, Value: a}), codes.InvalidArgument, "etcdserver: value is provided"},
		{"ignore_lease with a lease", put(&pb.PutRequest{Key: a, IgnoreLease: true, Lease: 1}), codes.InvalidArgument, "etcdserver: lease is provided"},
		{"ignore_value of no key", put(&pb.PutRequest{Key: []byte("none"), IgnoreValue: true}), codes.InvalidArgument, "etcdserver: key not found"},
		{"unknown lease", put(&pb.PutRequest{Key: a, Lease: 99}), codes.NotFound, "etcdserver: requested lease not found"},
		{"range without key", get(&pb.RangeRequest{}), codes.InvalidArgument, textEmptyKey},
		{"bad sort order", get(&pb.RangeRequest{Key: a, SortOrder: 7}), codes.InvalidArgument, "etcdserver: invalid sort option"},
		{"bad sort target", get(&pb.RangeRequest{Key: a, SortTarget: 7}), codes.InvalidArgument, "etcdserver: invalid sort option"},
		{"compacted range", get(&pb.RangeRequest{Key: a, Revision: 2}), codes.OutOfRange, compacted},
		{"future range", get(&pb.RangeRequest{Key: a, Revision: 4}), codes.OutOfRange, future},
		{"compacted range in a read-only txn", txn(&pb.TxnRequest{Success: ops(opRange(&pb.RangeRequest{Key: a, Revision: 2}))}), codes.OutOfRange, compacted},
		{"future range in a txn", txn(&pb.TxnRequest{Success: ops(opPut("b"), opRange(&pb.RangeRequest{Key: a, Revision: 9}))}), codes.OutOfRange, future},
		{"too many operations", txn(&pb.TxnRequest{Success: ops(opPut("b"), opPut("c"), opPut("d"))}), codes.InvalidArgument, textTooMany},
		{"a key twice", txn(&pb.TxnRequest{Success: ops(opPut("b"), opPut("b"))}), codes.InvalidArgument, textDuplicate},
		{"delete without key", func() error { _, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{}); return err }, codes.InvalidArgument, textEmptyKey},
		{"compact what is compacted", func() error { _, err := m.kv.Compact(ctx, &pb.CompactionRequest{Revision: 3}); return err }, codes.OutOfRange, compacted},
		{"compact the future", func() error { _, err := m.kv.Compact(ctx, &pb.CompactionRequest{Revision: 9}); return err }, codes.OutOfRange, future},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { checkStatus(t, c.call(), c.code, c.text) })
	}
	if rev := m.put("z", "").Header.Revision; rev != 4 {
		t.Fatalf("revision %d: a refused request has written", rev)
	}
}

func TestReadsAskForABarrier(t *testing.T) {
	m := newMember(t)
	m.put("a", "1")
	r := func(serializable bool) *pb.RangeRequest {
		return &pb.RangeRequest{Key: []byte("a"), Serializable: serializable}
	}
	cases := []struct {
		name     string
		barriers int64
		call     func(ctx context.Context) error
	}{
		{"linearizable range", 1, func(ctx context.Context) error { _, err := m.kv.Range(ctx, r(false)); return err }},
		{"serializable range", 0, func(ctx context.Context) error { _, err := m.kv.Range(ctx, r(true)); return err }},
		{"read-only txn", 1, func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(opRange(r(true)), opRange(r(false)))})
			return err
		}},
		{"serializable txn", 0, func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(opRange(r(true)))})
			return err
		}},
		{"txn of compares alone", 0, func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("a")}}})
			return err
		}},
		{"nested txn", 1, func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(opTxnOf(ops(opRange(r(true))), nil))})
			return err
		}},
		{"member list", 1, func(ctx context.Context) error {
			_, err := m.cluster.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
			return err
		}},
		{"local member list", 0, func(ctx context.Context) error {
			_, err := m.cluster.MemberList(ctx, &pb.MemberListRequest{})
			return err
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			proposed := len(m.replica.requests())
			before := m.replica.barriers.Load()
			must(t, c.call(t.Context()))
			if n := m.replica.barriers.Load() - before; n != c.barriers {
				t.Errorf("%d barriers, want %d", n, c.barriers)
			}
			if n := len(m.replica.requests()) - proposed; n != 0 {
				t.Errorf("a read has proposed")
			}
		})
	}
	m.replica.set(func(r *solo) { r.barrierErr = replica.ErrLeaderChanged })
	_, err := m.kv.Range(t.Context(), r(false))
	checkStatus(t, err, codes.Unavailable, "etcdserver: leader changed")
}

func TestProposalErrorsReachTheClient(t *testing.T) {
	m := newMember(t)
	for err, want := range map[error]struct {
		code codes.Code
		text string
	}{
		replica.ErrTimeout:         {codes.Unavailable, "etcdserver: request timed out"},
		replica.ErrRequestTooLarge: {codes.InvalidArgument, "etcdserver: request is too large"},
		replica.ErrTooManyRequests: {codes.Unknown, "etcdserver: too many requests"},
		replica.ErrStopped:         {codes.Unavailable, "etcdserver: server stopped"},
		context.DeadlineExceeded:   {codes.DeadlineExceeded, "context deadline exceeded"},
	} {
		m.replica.set(func(r *solo) { r.proposeErr = err })
		_, got := m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("a")})
		checkStatus(t, got, want.code, want.text)
	}
}

func TestAdmissionRefuses(t *testing.T) {
	gate := admission.New(admission.Options{MaxBacklogAge: time.Second})
	m := newMember(t, func(c *Config, _ *state.Config) { c.Admission = gate })
	now := time.Now()
	gate.Observe(now, 10, 1, 0)
	gate.Observe(now.Add(1500*time.Millisecond), 10, 1, 0)
	_, err := m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("a")})
	checkStatus(t, err, codes.Unknown, "etcdserver: too many requests")
	// What the member asks for itself still finds room.
	if _, err := m.log.alarm(t.Context(), &pb.AlarmRequest{}); err != nil {
		t.Fatal(err)
	}
	if gate.InFlight() != 0 {
		t.Fatalf("%d bytes stayed in flight", gate.InFlight())
	}
}

func TestQuota(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	m := newMember(t, func(c *Config, s *state.Config) { s.QuotaBytes, c.Logger = 1, zap.New(core) })
	ctx := t.Context()
	const text = "etcdserver: mvcc: database space exceeded"
	_, err := m.kv.Put(ctx, &pb.PutRequest{}) // the quota is looked at before the request
	checkStatus(t, err, codes.ResourceExhausted, text)
	_, err = m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(opPut("a"))})
	checkStatus(t, err, codes.ResourceExhausted, text)
	_, err = m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 10})
	checkStatus(t, err, codes.ResourceExhausted, text)
	_, err = m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a")})
	must(t, err)
	until(t, "the alarm", m.noSpace)
	list, err := m.maintenance.Alarm(ctx, &pb.AlarmRequest{})
	must(t, err)
	if len(list.Alarms) != 1 || list.Alarms[0].Alarm != pb.AlarmType_NOSPACE || list.Alarms[0].MemberID != testMember {
		t.Fatalf("alarms %v", list.Alarms)
	}
	odd, err := m.maintenance.Alarm(ctx, &pb.AlarmRequest{Action: 99, Alarm: pb.AlarmType_NOSPACE}) // this ends an etcd
	must(t, err)
	if odd.Header == nil || len(odd.Alarms) != 0 {
		t.Fatalf("an action that does not exist is answered with %v", odd)
	}
	status, err := m.maintenance.Status(ctx, &pb.StatusRequest{})
	must(t, err)
	if len(status.Errors) != 1 || !strings.Contains(status.Errors[0], "NOSPACE") || status.DbSizeQuota != 1 {
		t.Fatalf("status %v", status)
	}
	// The log says so too, once: clients' errors are not where an operator looks.
	said := logs.FilterMessage("message exceeded backend quota; raising alarm").All()
	if len(said) != 1 || said[0].Level != zap.WarnLevel || said[0].ContextMap()["quota-size"] != "1 B" {
		t.Errorf("said %v", said)
	}
}

// until polls a condition with a deadline.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRangeStream(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) { c.MaxRequestBytes = 4096 })
	// Small keys first, so that the chunks have grown when the large ones come.
	const small, large = 300, 40
	for i := range small {
		m.put(fmt.Sprintf("k%06d", i), "v")
	}
	for i := range large {
		m.put(fmt.Sprintf("l%06d", i), strings.Repeat("x", 2048))
	}
	rev := m.cfg.KV.Revision()
	cases := []struct {
		name  string
		req   *pb.RangeRequest
		keys  int
		count int64
		more  bool
	}{
		{"all", &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("z")}, small + large, small + large, false},
		{"limit", &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("z"), Limit: 37}, 37, small + large, true},
		{"limit is all", &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("z"), Limit: small + large}, small + large, small + large, false},
		{"one key", &pb.RangeRequest{Key: []byte("k000001")}, 1, 1, false},
		{"nothing", &pb.RangeRequest{Key: []byte("x"), RangeEnd: []byte("z")}, 0, 0, false},
		{"count", &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("z"), CountOnly: true}, 0, small + large, false},
		{"keys only", &pb.RangeRequest{Key: []byte("l"), RangeEnd: []byte("m"), KeysOnly: true}, large, large, false},
		{"an earlier revision", &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("z"), Revision: 101}, 100, 100, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			stream, err := m.kv.RangeStream(t.Context(), c.req)
			must(t, err)
			var keys []string
			var last *pb.RangeResponse
			for {
				chunk, err := stream.Recv()
				if err == io.EOF {
					break
				}
				must(t, err)
				if last != nil && (last.Header != nil || last.More || last.Count != 0) {
					t.Fatalf("header, more or count on a chunk that is not the last: %v %v %d", last.Header, last.More, last.Count)
				}
				last = chunk.RangeResponse
				if n := proto.Size(last); n > 3*2*m.cfg.MaxRequestBytes {
					t.Errorf("a chunk of %d bytes and %d keys", n, len(last.Kvs))
				}
				for _, kv := range last.Kvs {
					keys = append(keys, string(kv.Key))
					if c.req.KeysOnly && len(kv.Value) != 0 {
						t.Fatal("keys_only has values")
					}
				}
			}
			m.checkHeader(last.Header, rev)
			if len(keys) != c.keys || last.Count != c.count || last.More != c.more {
				t.Fatalf("%d keys, count %d, more %v; want %d, %d, %v", len(keys), last.Count, last.More, c.keys, c.count, c.more)
			}
			for i := 1; i < len(keys); i++ {
				if keys[i] <= keys[i-1] {
					t.Fatalf("%q after %q", keys[i], keys[i-1])
				}
			}
		})
	}
	stream, err := m.kv.RangeStream(t.Context(), &pb.RangeRequest{Key: []byte("a"), Revision: rev + 1})
	must(t, err)
	_, err = stream.Recv()
	checkStatus(t, err, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision")
}

// TestRangeStreamSortsEachChunk: a target without an order passes, and sorts each chunk by itself.
// What etcd's loop of plain ranges would send is the model: the plain range is compared with etcd
// elsewhere.
func TestRangeStreamSortsEachChunk(t *testing.T) {
	m := newMember(t)
	ctx := t.Context()
	grant, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 1000})
	must(t, err)
	for i := range 90 { // neither values, versions nor revisions grow with the keys
		_, err := m.kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%02d", i*37%90), Value: fmt.Appendf(nil, "%02d", i*53%97), Lease: grant.ID * int64(i%2)})
		must(t, err)
	}
	for i := range 40 {
		m.put(fmt.Sprintf("k%02d", i*7%90), "0")
	}
	for _, target := range []pb.RangeRequest_SortTarget{pb.RangeRequest_VERSION, pb.RangeRequest_CREATE, pb.RangeRequest_MOD, pb.RangeRequest_VALUE} {
		for _, limit := range []int64{0, 1, 7, 10, 11, 35, 90, 1000, -1} {
			for _, keysOnly := range []bool{false, true} {
				req := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), SortTarget: target, Limit: limit, KeysOnly: keysOnly}
				want, count, more := etcdsChunks(t, m, req)
				stream, err := m.kv.RangeStream(ctx, req)
				must(t, err)
				whole := &pb.RangeResponse{}
				for {
					chunk, err := stream.Recv()
					if err == io.EOF {
						break
					}
					must(t, err)
					proto.Merge(whole, chunk.RangeResponse)
				}
				if have := fmt.Sprint(whole.Kvs); have != fmt.Sprint(want) || whole.Count != count || whole.More != more {
					t.Errorf("%v, limit %d, keys only %v: count %d more %v, want %d %v\nhave %s\nwant %s", target, limit, keysOnly, whole.Count, whole.More, count, more, have, fmt.Sprint(want))
				}
			}
		}
	}
}

// etcdsChunks does what etcd's rangeStream does, for keys that are small.
func etcdsChunks(t *testing.T, m *member, req *pb.RangeRequest) (kvs []*mvccpb.KeyValue, count int64, more bool) {
	t.Helper()
	r := proto.Clone(req).(*pb.RangeRequest)
	total := r.Limit
	if total == 0 {
		total = math.MaxInt64
	}
	for r.Limit = min(10, total); ; r.Limit = min(2*r.Limit, total-int64(len(kvs))) {
		resp, err := m.kv.Range(t.Context(), r)
		must(t, err)
		kvs = append(kvs, resp.Kvs...)
		if resp.More {
			r.Key = append(bytes.Clone(resp.Kvs[len(resp.Kvs)-1].Key), 0)
		}
		if n := int64(len(kvs)); !resp.More || n == total {
			if resp.More {
				rest, err := m.kv.Range(t.Context(), &pb.RangeRequest{Key: r.Key, RangeEnd: r.RangeEnd, CountOnly: true})
				must(t, err)
				n += rest.Count
			}
			return kvs, n, resp.More
		}
	}
}

func TestLease(t *testing.T) {
	m := newMember(t)
	ctx := t.Context()
	grant, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 100})
	must(t, err)
	m.checkHeader(grant.Header, 1)
	if grant.ID <= 0 || grant.TTL != 100 {
		t.Fatalf("%v", grant)
	}
	short, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 5, TTL: -1})
	must(t, err)
	if short.ID != 5 || short.TTL != 2 {
		t.Fatalf("TTL not raised to the least: %v", short)
	}
	_, err = m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 5, TTL: 1})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: lease already exists")
	_, err = m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 9_000_000_001})
	checkStatus(t, err, codes.OutOfRange, "etcdserver: too large lease TTL")
	_, err = m.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Lease: grant.ID})
	must(t, err)

	ttl, err := m.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: grant.ID, Keys: true})
	must(t, err)
	m.checkHeader(ttl.Header, 2)
	if ttl.GrantedTTL != 100 || ttl.TTL < 95 || ttl.TTL > 100 || len(ttl.Keys) != 1 || string(ttl.Keys[0]) != "k" {
		t.Fatalf("%v", ttl)
	}
	ttl, err = m.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 77})
	must(t, err)
	if ttl.TTL != -1 || ttl.GrantedTTL != 0 || ttl.ID != 77 {
		t.Fatalf("%v", ttl)
	}
	list, err := m.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	must(t, err)
	if len(list.Leases) != 2 || list.Leases[0].ID != 5 { // the one that expires first is first
		t.Fatalf("%v", list)
	}

	stream, err := m.lease.LeaseKeepAlive(ctx)
	must(t, err)
	for id, want := range map[int64]int64{grant.ID: 100, 77: 0} {
		must(t, stream.Send(&pb.LeaseKeepAliveRequest{ID: id}))
		alive, err := stream.Recv()
		must(t, err)
		m.checkHeader(alive.Header, 2)
		if alive.ID != id || alive.TTL != want {
			t.Fatalf("keepalive of %d: %v", id, alive)
		}
	}
	must(t, stream.CloseSend())

	revoke, err := m.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: grant.ID})
	must(t, err)
	m.checkHeader(revoke.Header, 3)
	_, err = m.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: grant.ID})
	checkStatus(t, err, codes.NotFound, "etcdserver: requested lease not found")
	if resp, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k")}); err != nil || resp.Count != 0 {
		t.Fatalf("the key outlived its lease: %v %v", resp, err)
	}
}

// checkpointed grants lease 7 for 100 s and gives it a checkpoint of 30.
func (m *member) checkpointed(ctx context.Context) {
	_, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 100})
	must(m.t, err)
	checkpoint := &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 7, Remaining_TTL: 30}}}
	_, err = m.log.own(ctx, kindLeaseCheckpoint, &pb.InternalRaftRequest{LeaseCheckpoint: checkpoint})
	must(m.t, err)
}

// A renewed lease that has a checkpoint must lose it before the client hears.
func TestRenewalTakesCheckpointBack(t *testing.T) {
	m := newMember(t)
	ctx := t.Context()
	m.checkpointed(ctx)
	ttl, err := m.Server.lease.renew(ctx, 7)
	must(t, err)
	all := m.replica.requests()
	last := all[len(all)-1].(*pb.InternalRaftRequest).LeaseCheckpoint
	if ttl != 100 || last == nil || last.Checkpoints[0].ID != 7 || last.Checkpoints[0].Remaining_TTL != 0 {
		t.Fatalf("ttl %d, last request %v", ttl, all[len(all)-1])
	}
	m.replica.set(func(r *solo) { r.proposed = nil })
	_, err = m.Server.lease.renew(ctx, 7)
	must(t, err)
	if n := len(m.replica.requests()); n != 0 {
		t.Fatalf("%d requests for a renewal without checkpoint", n)
	}
}

// A renewal whose checkpoint is taken back only once another member leads means
// nothing: that member's clock runs by the checkpoint.
func TestRenewalOverHandOver(t *testing.T) {
	var r *moving
	m := newMember(t, func(c *Config, _ *state.Config) { r = &moving{Replica: c.Replica}; c.Replica = r })
	ctx := t.Context()
	m.checkpointed(ctx)
	// The one table plays both members': what they hold is the same.
	r.before = func() {
		r.before = nil
		term := m.replica.Term()
		m.cfg.Leases.Demote(term)
		m.replica.set(func(s *solo) { s.term++ })
		if !m.cfg.Leases.Promote(term+1, time.Second) {
			t.Error("not promoted")
		}
	}
	ttl, err := m.Server.lease.renew(ctx, 7)
	must(t, err)
	if info, _ := m.cfg.Leases.Lookup(7); ttl != 100 || info.Remaining < 99*time.Second {
		t.Errorf("the renewal answered %d s; the new leader gives the lease %v", ttl, info.Remaining)
	}
}

// moving is a replica that loses its leadership before it proposes a checkpoint.
type moving struct {
	Replica
	before func()
}

func (m *moving) Propose(ctx context.Context, req *pb.InternalRaftRequest) (command.Result, error) {
	m.move(req)
	return m.Replica.Propose(ctx, req)
}

func (m *moving) ProposeInTerm(ctx context.Context, term uint64, req *pb.InternalRaftRequest) (command.Result, error) {
	m.move(req)
	return m.Replica.ProposeInTerm(ctx, term, req)
}

func (m *moving) move(req *pb.InternalRaftRequest) {
	if req.LeaseCheckpoint != nil && m.before != nil {
		m.before()
	}
}

// A client that reads nothing ends its stream.
func TestSendWithin(t *testing.T) {
	reads := make(chan struct{})
	defer close(reads)
	if err := sendWithin(10*time.Millisecond, func() error { <-reads; return nil }); err != errStreamStalled {
		t.Errorf("nobody reads: %v", err)
	}
	broken := errors.New("broken")
	if err := sendWithin(time.Minute, func() error { return broken }); err != broken {
		t.Errorf("the stream is broken: %v", err)
	}
}

// The leader that was stopped must not answer renewals until a quorum has confirmed it.
func TestRenewalNeedsConfirmedLeadership(t *testing.T) {
	m := newMember(t)
	_, err := m.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 7, TTL: 100})
	must(t, err)
	_, err = m.Server.lease.renewHere(t.Context(), 7)
	must(t, err)
	m.Server.lease.confirmed.store(time.Now().Add(-time.Hour))
	m.replica.set(func(r *solo) { r.barrierErr = replica.ErrTimeout })
	if _, err := m.Server.lease.renewHere(t.Context(), 7); err != lease.ErrNotPrimary {
		t.Fatalf("error %v, want %v", err, lease.ErrNotPrimary)
	}
	m.replica.set(func(r *solo) { r.barrierErr, r.leader = nil, 2 })
	if _, err := m.Server.lease.renewHere(t.Context(), 7); err != lease.ErrNotPrimary {
		t.Fatalf("error %v, want %v", err, lease.ErrNotPrimary)
	}
}

// The proof of leadership does not last longer for a member with a long election timeout: the next
// leader may have a short one, and gives each lease lease.Overlap more than it has left, no matter
// which.
func TestRenewalUnderLongElectionTimeout(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) { c.ElectionTimeout = 50 * time.Second })
	_, err := m.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 7, TTL: 100})
	must(t, err)
	must(t, m.Server.lease.confirmLeadership(t.Context()))
	m.replica.set(func(r *solo) { r.barrierErr = replica.ErrTimeout })
	m.Server.lease.confirmed.store(time.Now().Add(-lease.Overlap))
	if _, ok := m.Server.lease.renewNow(7); ok {
		t.Error("renewed at once, although another member may lead")
	}
	if _, err := m.Server.lease.renewHere(t.Context(), 7); err != lease.ErrNotPrimary {
		t.Errorf("error %v, want %v", err, lease.ErrNotPrimary)
	}
}

// What a client is told of the TTL of its lease holds on a leader with a shorter minimum, too.
func TestGrantedTTLHoldsElsewhere(t *testing.T) {
	var st *store.Store
	m := newMember(t, func(c *Config, s *state.Config) {
		leases, err := lease.Open(c.Store, lease.Options{MinTTL: 15})
		must(t, err)
		st, c.Leases, s.Leases = c.Store, leases, leases
	})
	granted, err := m.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 7, TTL: 5})
	must(t, err)
	other, err := lease.Open(st, lease.Options{MinTTL: 2})
	must(t, err)
	if info, _ := other.Lookup(7); granted.TTL != 15 || info.TTL != granted.TTL {
		t.Errorf("the client was told %d s, a member with another minimum has %d s", granted.TTL, info.TTL)
	}
}

// A leader that is cut off and steps down lets go of the renewals that wait for its quorum: their
// callers are to learn that there is no leader, or ask the next one.
func TestRenewalEndsWithLeadership(t *testing.T) {
	r := &silent{asked: make(chan struct{})}
	m := newMember(t, func(c *Config, _ *state.Config) { r.Replica = c.Replica; c.Replica = r })
	r.quiet.Store(true)
	renewed := make(chan error, 1)
	go func() {
		_, err := m.Server.lease.renewHere(t.Context(), 7)
		renewed <- err
	}()
	<-r.asked
	m.replica.setLeader(0, 1)
	select {
	case err := <-renewed:
		if err != lease.ErrNotPrimary {
			t.Errorf("error %v, want %v", err, lease.ErrNotPrimary)
		}
	case <-time.After(time.Minute):
		t.Error("the renewal still waits")
	}
}

// silent is a replica whose quorum does not answer once it is quiet.
type silent struct {
	Replica
	quiet atomic.Bool
	asked chan struct{} // closed when a barrier waits
	once  sync.Once
}

func (s *silent) ReadBarrier(ctx context.Context) error {
	if !s.quiet.Load() {
		return s.Replica.ReadBarrier(ctx)
	}
	s.once.Do(func() { close(s.asked) })
	<-ctx.Done()
	return ctx.Err()
}

// A leader that is stopped for a moment in the middle of a renewal promises nothing: another may
// lead meanwhile, whose clock for the lease began before.
func TestRenewalAmidPause(t *testing.T) {
	var paused atomic.Pointer[func()]
	m := newMember(t, func(c *Config, s *state.Config) {
		leases, err := lease.Open(c.Store, lease.Options{MinTTL: 2, Clock: func() time.Time {
			if f := paused.Load(); f != nil {
				(*f)()
			}
			return time.Now()
		}})
		must(t, err)
		c.Leases, s.Leases = leases, leases
	})
	_, err := m.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 7, TTL: 100})
	must(t, err)
	_, err = m.Server.lease.renewHere(t.Context(), 7)
	must(t, err)
	pause := func() { // as long as it takes to elect another
		m.Server.lease.confirmed.store(time.Now().Add(-m.cfg.ElectionTimeout))
		m.replica.set(func(r *solo) { r.barrierErr = replica.ErrTimeout })
	}
	paused.Store(&pause)
	m.Server.lease.confirmed.store(time.Now())
	if _, err := m.Server.lease.renewHere(t.Context(), 7); err != lease.ErrNotPrimary {
		t.Fatalf("error %v, want %v", err, lease.ErrNotPrimary)
	}
	paused.Store(nil)
	m.replica.set(func(r *solo) { r.barrierErr = nil })
	_, err = m.Server.lease.renewHere(t.Context(), 7)
	must(t, err)
}

func TestLeasesExpireOnTheLeader(t *testing.T) {
	m := newMember(t)
	m.cfg.Leases.Demote(m.replica.Term())
	m.replica.setLeader(testMember, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.expiry.Run(ctx) }()
	defer func() { cancel(); <-done }()
	until(t, "the table to become primary", func() bool { _, ok := m.cfg.Leases.Primary(); return ok })
	_, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 1}) // 2 s, the least
	must(t, err)
	_, err = m.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Lease: 7})
	must(t, err)
	m.clock.Add(int64(time.Hour))
	until(t, "the lease to expire", func() bool { return !m.cfg.Leases.Exists(7) })
	if resp, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k")}); err != nil || resp.Count != 0 {
		t.Fatalf("%v %v", resp, err)
	}
	m.replica.setLeader(2, 1)
	until(t, "the table to be demoted", func() bool { _, ok := m.cfg.Leases.Primary(); return !ok })
}

func TestMembers(t *testing.T) {
	m := newMember(t)
	ctx := t.Context()
	list, err := m.cluster.MemberList(ctx, &pb.MemberListRequest{})
	must(t, err)
	m.checkHeader(list.Header, 0) // no revision
	if len(list.Members) != 1 || list.Members[0].Name != "one" || list.Members[0].ClientURLs[0] != "http://127.0.0.1:2379" {
		t.Fatalf("%v", list)
	}
	for _, urls := range [][]string{nil, {"not a url"}, {"ftp://x:1"}, {"http://x"}} {
		_, err = m.cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: urls})
		checkStatus(t, err, codes.InvalidArgument, "etcdserver: given member URLs are invalid")
	}
	_, err = m.cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:2380"}})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: Peer URLs already exists")

	add, err := m.cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:3380"}, IsLearner: true})
	must(t, err)
	m.checkHeader(add.Header, 0)
	if add.Member.ID == 0 || !add.Member.IsLearner || add.Member.Name != "" || len(add.Members) != 2 {
		t.Fatalf("%v", add)
	}
	_, err = m.cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:4380"}, IsLearner: true})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: too many learner members in cluster")

	m.replica.set(func(r *solo) { r.readyErr = replica.ErrLearnerNotReady })
	_, err = m.cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: add.Member.ID})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader")
	m.replica.set(func(r *solo) { r.readyErr = replica.ErrMemberNotFound })
	_, err = m.cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 99})
	checkStatus(t, err, codes.NotFound, "etcdserver: member not found")
	m.replica.set(func(r *solo) { r.readyErr = nil })
	_, err = m.cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: testMember})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: can only promote a learner member")
	// Monitoring tells the reasons apart by etcd's own texts, which are not those that clients see.
	families, err := m.reg.Gather()
	must(t, err)
	reasons := make(map[string]float64)
	for _, f := range families {
		if f.GetName() == "etcd_server_learner_promote_failures" {
			for _, series := range f.GetMetric() {
				reasons[series.GetLabel()[0].GetValue()] = series.GetCounter().GetValue()
			}
		}
	}
	for _, reason := range []string{"membership: ID not found", "membership: can only promote a learner member", "etcdserver: can only promote a learner member which is in sync with leader"} {
		if reasons[reason] != 1 {
			t.Errorf("promotions that failed are counted as %v, without %q", reasons, reason)
		}
	}
	promote, err := m.cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: add.Member.ID})
	must(t, err)
	if promote.Members[0].IsLearner || promote.Members[1].IsLearner {
		t.Fatalf("%v", promote)
	}

	update, err := m.cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: add.Member.ID, PeerURLs: []string{"http://127.0.0.1:5380"}})
	must(t, err)
	m.checkHeader(update.Header, 0)
	_, err = m.cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 99, PeerURLs: []string{"http://127.0.0.1:6380"}})
	checkStatus(t, err, codes.NotFound, "etcdserver: member not found")
	for _, bad := range [][]string{nil, {""}, {"127.0.0.1:5380"}, {"http://127.0.0.1:5380", "127.0.0.1:5381"}, {"http://127.0.0.1"}, {"http://127.0.0.1:5380/path"}} {
		_, err = m.cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: add.Member.ID, PeerURLs: bad})
		checkStatus(t, err, codes.InvalidArgument, "etcdserver: given member URLs are invalid")
		_, err = m.cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 99, PeerURLs: bad})
		checkStatus(t, err, codes.NotFound, "etcdserver: member not found")
	}

	// The new voter never started: it may go, and no other may come.
	_, err = m.cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:7380"}})
	checkStatus(t, err, codes.Unknown, "etcdserver: re-configuration failed due to not enough started members")
	remove, err := m.cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: add.Member.ID})
	must(t, err)
	if len(remove.Members) != 1 {
		t.Fatalf("%v", remove)
	}
	_, err = m.cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: add.Member.ID})
	checkStatus(t, err, codes.NotFound, "etcdserver: member not found")
	_, err = m.cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: testMember})
	checkStatus(t, err, codes.Unknown, "etcdserver: re-configuration failed due to not enough started members")
}

func TestStrictReconfigLooksAtConnections(t *testing.T) {
	m := newMember(t)
	for i, url := range []string{"http://127.0.0.1:3380", "http://127.0.0.1:4380"} {
		m.addMember(uint64(i+2), url, false, true)
	}
	reach := func(id uint64, since time.Time) {
		m.peers.mu.Lock()
		defer m.peers.mu.Unlock()
		m.peers.active[id] = since
	}
	add := func() error {
		_, err := m.cluster.MemberAdd(t.Context(), &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:5380"}})
		return err
	}
	remove := func(id uint64) error {
		_, err := m.cluster.MemberRemove(t.Context(), &pb.MemberRemoveRequest{ID: id})
		return err
	}
	long := time.Now().Add(-time.Hour)
	checkStatus(t, add(), codes.Unavailable, "etcdserver: unhealthy cluster")
	reach(2, time.Now()) // not long enough
	checkStatus(t, add(), codes.Unavailable, "etcdserver: unhealthy cluster")
	reach(2, long)
	checkStatus(t, add(), codes.Unavailable, "etcdserver: unhealthy cluster") // 2 of 3: the fourth would make the quorum 3
	// Removing a member that answers, while the third does not, would leave one of two.
	checkStatus(t, remove(2), codes.Unavailable, "etcdserver: unhealthy cluster")
	reach(3, long)
	checkStatus(t, add(), codes.OK, "")
	reach(3, time.Time{})
	checkStatus(t, remove(3), codes.OK, "") // it is down anyway
}

func TestMaintenance(t *testing.T) {
	m := newMember(t)
	ctx := t.Context()
	m.put("a", "1")
	status, err := m.maintenance.Status(ctx, &pb.StatusRequest{})
	must(t, err)
	m.checkHeader(status.Header, 2)
	if status.Version != version.Etcd || status.StorageVersion != "3.7.0" || status.DbSize <= 0 || status.DbSizeQuota != 2<<30 ||
		status.Leader != testMember || status.IsLearner || len(status.Errors) != 0 || status.DowngradeInfo.Enabled || status.RaftTerm != 2 {
		t.Fatalf("%v", status)
	}
	defrag, err := m.maintenance.Defragment(ctx, &pb.DefragmentRequest{})
	must(t, err)
	if defrag.Header != nil {
		t.Fatal("the header of Defragment is nil in etcd")
	}
	hash, err := m.maintenance.Hash(ctx, &pb.HashRequest{})
	must(t, err)
	m.checkHeader(hash.Header, 2)
	kv, err := m.maintenance.HashKV(ctx, &pb.HashKVRequest{})
	must(t, err)
	m.checkHeader(kv.Header, 2)
	if kv.CompactRevision != -1 || kv.HashRevision != 2 {
		t.Fatalf("%v", kv)
	}
	_, err = m.maintenance.HashKV(ctx, &pb.HashKVRequest{Revision: 9})
	checkStatus(t, err, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision")

	_, err = m.maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 99})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: bad leader transferee")
	m.addMember(2, "http://127.0.0.1:3380", false, true)
	m.addMember(3, "http://127.0.0.1:4380", true, true)
	_, err = m.maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 3}) // a learner
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: bad leader transferee")
	m.replica.set(func(r *solo) { r.moveErr = replica.ErrTimeoutLeaderTransfer })
	m.addMember(4, "http://127.0.0.1:5380", false, false)
	_, err = m.maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 4}) // it has never started
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: bad leader transferee")
	m.peers.mu.Lock()
	m.peers.active[2] = time.Now()
	m.peers.mu.Unlock()
	_, err = m.maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 2})
	checkStatus(t, err, codes.Unknown, "etcdserver: request timed out, leader transfer took too long")
	m.replica.set(func(r *solo) { r.moveErr = nil })
	move, err := m.maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 2})
	must(t, err)
	if move.Header != nil {
		t.Fatal("the header of MoveLeader is nil in etcd")
	}
	_, err = m.maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 2})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: not leader")
	m.replica.setLeader(0, 0)
	status, err = m.maintenance.Status(ctx, &pb.StatusRequest{})
	must(t, err)
	if len(status.Errors) != 1 || status.Errors[0] != "etcdserver: no leader" {
		t.Fatalf("%v", status.Errors)
	}
}

func TestDowngrade(t *testing.T) {
	m := newMember(t)
	do := func(action pb.DowngradeRequest_DowngradeAction, version string) (*pb.DowngradeResponse, error) {
		return m.maintenance.Downgrade(t.Context(), &pb.DowngradeRequest{Action: action, Version: version})
	}
	for _, v := range []string{"", "x", "3", "3.6.x"} {
		_, err := do(pb.DowngradeRequest_VALIDATE, v)
		checkStatus(t, err, codes.InvalidArgument, "etcdserver: wrong downgrade target version format")
	}
	for _, v := range []string{"3.7", "3.5.0", "4.6", "3.8"} {
		_, err := do(pb.DowngradeRequest_VALIDATE, v)
		checkStatus(t, err, codes.InvalidArgument, "etcdserver: invalid downgrade target version")
	}
	resp, err := do(pb.DowngradeRequest_CANCEL, "") // nothing to cancel: OK all the same
	must(t, err)
	if resp.Version != "3.7" {
		t.Fatalf("%v", resp)
	}
	_, err = do(9, "3.6")
	checkStatus(t, err, codes.Unknown, "etcdserver: unknown method")
	for _, v := range []string{"3.6", "3.6.0", "3.6.9"} {
		_, err = do(pb.DowngradeRequest_VALIDATE, v)
		must(t, err)
	}
	_, err = do(pb.DowngradeRequest_ENABLE, "3.6")
	must(t, err)
	_, err = do(pb.DowngradeRequest_ENABLE, "3.6")
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: cluster has a downgrade job in progress")
	status, err := m.maintenance.Status(t.Context(), &pb.StatusRequest{})
	must(t, err)
	if !status.DowngradeInfo.Enabled || status.DowngradeInfo.TargetVersion != "3.6.0" {
		t.Fatalf("%v", status.DowngradeInfo)
	}
	m.version.Update(t.Context(), m.replica.Term())
	if v := m.cfg.State.ClusterVersion().String(); v != "3.6.0" {
		t.Fatalf("cluster version %s after the downgrade was enabled", v)
	}
	_, err = do(pb.DowngradeRequest_CANCEL, "")
	must(t, err)
	m.version.Update(t.Context(), m.replica.Term())
	if v := m.cfg.State.ClusterVersion().String(); v != "3.7.0" {
		t.Fatalf("cluster version %s after the downgrade was cancelled", v)
	}
}

func TestAuthIsOff(t *testing.T) {
	m := newMember(t)
	ctx := t.Context()
	status, err := m.auth.AuthStatus(ctx, &pb.AuthStatusRequest{})
	must(t, err)
	if status.Enabled || status.AuthRevision != 1 {
		t.Fatalf("%v", status)
	}
	_, err = m.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: "root"})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: authentication is not enabled")
	_, err = m.auth.AuthDisable(ctx, &pb.AuthDisableRequest{})
	must(t, err)
	_, err = m.auth.AuthEnable(ctx, &pb.AuthEnableRequest{})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: root user does not exist")
}

func TestInterceptors(t *testing.T) {
	m := newMember(t)
	get := func(ctx context.Context) error {
		_, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Serializable: true})
		return err
	}
	withLeader := metadata.AppendToOutgoingContext(t.Context(), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	must(t, get(withLeader))
	m.replica.setLeader(0, 0)
	checkStatus(t, get(withLeader), codes.Unavailable, "etcdserver: no leader")
	must(t, get(t.Context()))
	stream, err := m.lease.LeaseKeepAlive(withLeader)
	must(t, err)
	_, err = stream.Recv()
	checkStatus(t, err, codes.Unavailable, "etcdserver: no leader")

	// An open stream is ended once there has been no leader for long.
	m.replica.setLeader(testMember, 0)
	stream, err = m.lease.LeaseKeepAlive(withLeader)
	must(t, err)
	must(t, stream.Send(&pb.LeaseKeepAliveRequest{ID: 1}))
	_, err = stream.Recv()
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go m.calls.watchLeader(ctx)
	m.replica.setLeader(0, 0)
	_, err = stream.Recv()
	checkStatus(t, err, codes.Unavailable, "etcdserver: no leader")
}

func TestStopEndsStreams(t *testing.T) {
	m := newMember(t)
	stream, err := m.lease.LeaseKeepAlive(t.Context())
	must(t, err)
	must(t, stream.Send(&pb.LeaseKeepAliveRequest{ID: 1}))
	_, err = stream.Recv()
	must(t, err)
	locks := lockpb.NewLockClient(m.conn)
	_, err = locks.Lock(t.Context(), &lockpb.LockRequest{Name: []byte("l")})
	must(t, err)
	second := make(chan error, 1)
	go func() {
		_, err := locks.Lock(t.Context(), &lockpb.LockRequest{Name: []byte("l")})
		second <- err
	}()
	until(t, "the second to queue up", func() bool {
		resp, err := m.kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("l/"), RangeEnd: []byte("l0"), CountOnly: true})
		return err == nil && resp.Count == 2
	})
	m.Stop()
	_, err = stream.Recv()
	checkStatus(t, err, codes.Unavailable, "etcdserver: server stopped")
	checkStatus(t, <-second, codes.Unavailable, "etcdserver: server stopped") // Unknown would make clients give up
}

func TestLearnerServesLittle(t *testing.T) {
	m := newBareMember(t)
	m.addMember(2, "http://127.0.0.1:3380", false, true)
	m.addMember(testMember, "http://127.0.0.1:2380", true, true)
	m.updateVersionTo(version.Etcd)
	const text = "etcdserver: rpc not supported for learner"
	_, err := m.kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("a"), Serializable: true})
	must(t, err)
	_, err = m.maintenance.Status(t.Context(), &pb.StatusRequest{})
	must(t, err)
	_, err = m.kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("a")})
	checkStatus(t, err, codes.FailedPrecondition, text)
	_, err = m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("a")})
	checkStatus(t, err, codes.FailedPrecondition, text)
	stream, err := m.kv.RangeStream(t.Context(), &pb.RangeRequest{Key: []byte("a"), Serializable: true})
	must(t, err)
	_, err = stream.Recv()
	checkStatus(t, err, codes.FailedPrecondition, text)
	snap, err := m.maintenance.Snapshot(t.Context(), &pb.SnapshotRequest{})
	must(t, err)
	_, err = snap.Recv()
	must(t, err)
	if w := m.get("/readyz"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "[-]non_learner failed: not supported for learner\n") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}

// updateVersionTo sets the cluster version directly.
func (m *member) updateVersionTo(v string) {
	m.t.Helper()
	parsed := semver.New(v)
	_, err := m.replica.Propose(m.t.Context(), versionRequest(&semver.Version{Major: parsed.Major, Minor: parsed.Minor}))
	must(m.t, err)
}

func TestNothingBeforeTheClusterVersion(t *testing.T) {
	m := newBareMember(t, func(c *Config, _ *state.Config) { c.RequestTimeout = 20 * time.Millisecond })
	_, err := m.maintenance.Status(t.Context(), &pb.StatusRequest{})
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: not capable")
	stream, err := m.lease.LeaseKeepAlive(t.Context())
	must(t, err)
	_, err = stream.Recv()
	checkStatus(t, err, codes.FailedPrecondition, "etcdserver: not capable")
	if v := m.get("/version").Body.String(); v != `{"etcdserver":"`+version.Etcd+`","etcdcluster":"not_decided","storage":"unknown","belay":"0.1.0"}` {
		t.Fatal(v)
	}
}

// TestCallsWaitForTheClusterVersion: Kubernetes' tests came so early that their
// first update was refused.
func TestCallsWaitForTheClusterVersion(t *testing.T) {
	m := newBareMember(t, func(c *Config, _ *state.Config) { c.RequestTimeout = time.Minute })
	put := make(chan error, 1)
	go func() {
		_, err := m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("early")})
		put <- err
	}()
	m.updateVersionTo("3.7.0")
	must(t, <-put)
}

func TestGRPCHealth(t *testing.T) {
	m := newMember(t)
	c := healthpb.NewHealthClient(m.conn)
	resp, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{})
	must(t, err)
	if resp.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("%v", resp)
	}
	_, err = c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "x"})
	checkStatus(t, err, codes.NotFound, "unknown service")
}

func TestHTTP(t *testing.T) {
	m := newMember(t)
	cases := []struct {
		name, target string
		before       func()
		code         int
		body         string
	}{
		{name: "version", target: "/version", code: 200, body: `{"etcdserver":"` + version.Etcd + `","etcdcluster":"3.7.0","storage":"3.7.0","belay":"0.1.0"}`},
		{name: "health", target: "/health", code: 200, body: `{"health":"true","reason":""}`},
		{name: "livez", target: "/livez", code: 200, body: "ok\n"},
		{name: "livez verbose", target: "/livez?verbose", code: 200, body: "[+]serializable_read ok\nok\n"},
		{name: "one check", target: "/readyz/data_corruption?verbose", code: 200, body: "[+]data_corruption ok\nok\n"},
		{name: "readyz", target: "/readyz?verbose", code: 200,
			body: "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n"},
		{name: "excluded", target: "/readyz?verbose&exclude=linearizable_read&exclude=nonsense&exclude=", code: 200,
			body: "[+]data_corruption ok\n[+]serializable_read ok\n[+]non_learner ok\nok\n"},
		{name: "no barrier", target: "/readyz", before: func() { m.replica.set(func(r *solo) { r.barrierErr = replica.ErrTimeout }) }, code: 503,
			body: "[+]data_corruption ok\n[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: request timed out\n[+]non_learner ok\n\n"},
		{name: "health without barrier", target: "/health", code: 503, body: `{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}` + "\n"},
		{name: "serializable health", target: "/health?serializable=true", code: 200, body: `{"health":"true","reason":""}`},
		{name: "no leader", target: "/health", before: func() { m.replica.setLeader(0, 0) }, code: 503, body: `{"health":"false","reason":"RAFT NO LEADER"}` + "\n"},
		{name: "livez without leader", target: "/livez", code: 200, body: "ok\n"},
		{name: "alarm", target: "/health?serializable=true", before: func() {
			_, err := m.log.alarm(t.Context(), &pb.AlarmRequest{MemberID: 5, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT})
			must(t, err)
		}, code: 503, body: `{"health":"false","reason":"ALARM CORRUPT"}` + "\n"},
		{name: "excluded alarm", target: "/health?serializable=true&exclude=CORRUPT", code: 200, body: `{"health":"true","reason":""}`},
		{name: "corrupt", target: "/readyz/data_corruption", code: 503, body: "[-]data_corruption failed: alarm activated: CORRUPT\n\n"},
		{name: "unknown", target: "/nonsense", code: 404, body: "404 page not found\n"},
		{name: "no pprof", target: "/debug/pprof/", code: 404, body: "404 page not found\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.before != nil {
				c.before()
			}
			if w := m.get(c.target); w.Code != c.code || w.Body.String() != c.body {
				t.Fatalf("%d %q, want %d %q", w.Code, w.Body, c.code, c.body)
			}
		})
	}
	for _, path := range []string{"/version", "/health", "/livez", "/readyz/non_learner"} {
		w := httptest.NewRecorder()
		m.httpHandler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, nil))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != http.MethodGet {
			t.Errorf("POST %s: %d", path, w.Code)
		}
	}
	if ct := m.get("/livez").Header().Get("Content-Type"); ct != "text/plain; charset=utf-8" {
		t.Errorf("content type %q", ct)
	}
	if w := m.get("/debug/vars"); w.Code != 200 || !json.Valid(w.Body.Bytes()) {
		t.Errorf("/debug/vars: %d", w.Code)
	}
}

func TestMetrics(t *testing.T) {
	m := newMember(t)
	m.put("a", "1")
	_, _ = m.kv.Put(t.Context(), &pb.PutRequest{})
	withVersion := metadata.AppendToOutgoingContext(t.Context(), rpctypes.MetadataClientAPIVersionKey, "3.7")
	_, err := m.kv.Range(withVersion, &pb.RangeRequest{Key: []byte("a")})
	must(t, err)
	text := m.get("/metrics").Body.String()
	for _, line := range []string{
		`grpc_server_started_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 2`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1`,
		`grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1`,
		`grpc_server_handled_total{grpc_code="Unauthenticated",grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 0`,
		`grpc_server_msg_received_total{grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"} 0`,
		`etcd_server_client_requests_total{client_api_version="3.7",type="unary"} 1`,
		`etcd_server_client_requests_total{client_api_version="unknown",type="unary"} 2`,
		`etcd_server_request_duration_seconds_count{success="true",type="Put"} 1`,
		`etcd_server_request_duration_seconds_count{success="true",type="Range"} 1`,
		`etcd_server_version{server_version="` + version.Etcd + `"} 1`,
		fmt.Sprintf(`etcd_server_id{server_id="%x"} 1`, uint64(testMember)),
		`etcd_server_quota_backend_bytes 2.147483648e+09`,
		`etcd_server_health_failures 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	if n := strings.Count(text, "grpc_server_started_total{"); n != 45 {
		t.Errorf("%d methods at zero, want 45", n)
	}
	if n := strings.Count(text, "grpc_server_handled_total{"); n != 45*17 {
		t.Errorf("%d codes at zero, want %d", n, 45*17)
	}
	if strings.Contains(text, "v3electionpb") || strings.Contains(text, "handling_seconds") {
		t.Error("Election before its first call, or handling_seconds without extensive metrics")
	}
	for _, name := range []string{"etcd_network_client_grpc_received_bytes_total 0\n", "etcd_network_client_grpc_sent_bytes_total 0\n"} {
		if strings.Contains(text, name) {
			t.Errorf("%s", name)
		}
	}
}

// A client that makes API versions up must not make series up.
func TestVersionLabelsAreBounded(t *testing.T) {
	m := NewMetrics(nil, MetricsOptions{})
	for i := range 10 * maxVersionLabels {
		m.unaryVersions.inc(fmt.Sprint(i))
	}
	m.unaryVersions.inc(strings.Repeat("x", 10000))
	if n := len(m.unaryVersions.byName); n > maxVersionLabels+1 {
		t.Fatalf("%d labels", n)
	}
}

func TestSlowRequestIsLogged(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	m := newMember(t, func(c *Config, _ *state.Config) { c.Logger = zap.New(core); c.WarnUnaryRequest = time.Nanosecond })
	m.put("secretkey", "secretvalue")
	entries := logs.FilterMessage("request stats").All()
	if len(entries) != 1 || entries[0].Level != zap.WarnLevel {
		t.Fatalf("%v", entries)
	}
	fields := entries[0].ContextMap()
	for _, name := range []string{"start time", "time spent", "remote", "response type", "request count", "request size", "response count", "response size", "request content"} {
		if _, ok := fields[name]; !ok {
			t.Errorf("no field %q", name)
		}
	}
	if fields["response type"] != "/etcdserverpb.KV/Put" || strings.Contains(fmt.Sprint(fields["request content"]), "secretvalue") {
		t.Errorf("%v", fields)
	}
}

// What a slow write has waited for is told, by whichever way it came, also if it failed.
func TestSlowWriteTellsItsWaits(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	m := newReadMember(t, func(c *Config, _ *state.Config) { c.Logger = zap.New(core); c.WarnUnaryRequest = time.Nanosecond })
	all := &pb.DeleteRangeRequest{Key: []byte("long/"), RangeEnd: []byte("long0"), PrevKv: true}
	writes := map[string]func(context.Context) error{
		"put": func(ctx context.Context) error {
			_, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("v")})
			return err
		},
		"large put": func(ctx context.Context) error {
			_, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: make([]byte, 100<<10), PrevKv: true})
			return err
		},
		"delete": func(ctx context.Context) error {
			_, err := m.kv.DeleteRange(ctx, all)
			return err
		},
		"txn": func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: all}}}})
			return err
		},
	}
	told := func(name string) map[string]any {
		t.Helper()
		var lines []observer.LoggedEntry
		for _, line := range logs.TakeAll() {
			if line.Message == "request stats" {
				lines = append(lines, line)
			}
		}
		if len(lines) != 1 {
			t.Fatalf("%s: %v", name, lines)
		}
		return lines[0].ContextMap()
	}
	logs.TakeAll()
	for _, name := range []string{"delete", "txn"} {
		m.replica.set(func(r *solo) { r.proposeErr = replica.ErrTimeout }) // so the keys stay
		release, err := m.turns.slots.Take(t.Context(), "somebody")
		must(t, err)
		done := make(chan error, 1)
		go func() { done <- writes[name](t.Context()) }()
		until(t, "it waits", func() bool { return m.turns.slots.Waiting() == 1 })
		const least = 5 * time.Millisecond
		time.Sleep(least)
		release()
		<-done
		if got, _ := told(name)["waited for a turn"].(time.Duration); got < least {
			t.Errorf("%s: it has waited for a turn for %v, and tells of %v", name, least, got)
		}
	}
	for _, failure := range []error{replica.ErrTimeout, nil} {
		for name, write := range writes {
			for _, waited := range []time.Duration{0, 3 * time.Second} {
				m.replica.set(func(r *solo) { r.proposeErr, r.waited = failure, waited })
				if err := write(t.Context()); (err == nil) != (failure == nil) {
					t.Fatalf("%s: %v", name, err)
				}
				if got, _ := told(name)["waited for room"].(time.Duration); got.Truncate(time.Second) != waited {
					t.Errorf("%s, ended with %v: it has waited for %v, and tells of %v", name, failure, waited, got)
				}
			}
		}
	}
}

// peerPort is what a member's peer port serves of the server.
func peerPort(m *member) http.Handler {
	mux := peers.NewMux(nil)
	m.RegisterPeers(mux)
	return mux
}

func TestPeerHTTP(t *testing.T) {
	m := newMember(t)
	h := peerPort(m)
	do := func(method, target, body string, header ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		if len(header) == 2 {
			r.Header.Set(header[0], header[1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	cases := []struct {
		name, method, target, body string
		header                     []string
		code                       int
		want                       string
	}{
		{name: "members", method: "GET", target: "/members", code: 200,
			want: `[{"id":10276657743932975437,"peerURLs":["http://127.0.0.1:2380"],"name":"one","clientURLs":["http://127.0.0.1:2379"]}]` + "\n"},
		{name: "members by POST", method: "POST", target: "/members", code: 405, want: "Method Not Allowed\n"},
		{name: "promote nonsense", method: "POST", target: "/members/promote/x", code: 404, want: "member x not found in cluster\n"},
		{name: "promote a voter", method: "POST", target: fmt.Sprintf("/members/promote/%d", uint64(testMember)), code: 412,
			want: "etcdserver: can only promote a learner member\n"},
		{name: "hash", method: "GET", target: "/members/hashkv", body: `{"revision":9}`, code: 400,
			want: "mvcc: required revision is a future revision\n"},
		{name: "hash of another cluster", method: "GET", target: "/members/hashkv", body: `{}`, header: []string{peers.HeaderCluster, "1"}, code: 412,
			want: "cluster ID mismatch\n"},
		{name: "hash with nonsense", method: "GET", target: "/members/hashkv", body: `x`, code: 400, want: "error unmarshalling request\n"},
		{name: "leases by GET", method: "GET", target: "/leases", code: 405, want: "Method Not Allowed\n"},
		{name: "leases with nonsense", method: "POST", target: "/leases", body: "\xff", code: 400, want: "error unmarshalling request\n"},
		{name: "unknown lease", method: "POST", target: "/leases", body: "\x08\x05", code: 404, want: "lease not found\n"},
		{name: "too large", method: "POST", target: "/leases", body: strings.Repeat("x", 70_000), code: 413, want: "request body too large\n"},
		{name: "downgrade", method: "GET", target: "/downgrade/enabled", code: 200, want: "false"},
		{name: "version", method: "GET", target: "/version", code: 200,
			want: `{"etcdserver":"` + version.Etcd + `","etcdcluster":"3.7.0","storage":"3.7.0","belay":"0.1.0"}`},
		{name: "no metrics here", method: "GET", target: "/metrics", code: 404, want: "404 page not found\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if w := do(c.method, c.target, c.body, c.header...); w.Code != c.code || w.Body.String() != c.want {
				t.Fatalf("%d %q, want %d %q", w.Code, w.Body, c.code, c.want)
			}
		})
	}
	if id := do("GET", "/members", "").Header().Get(peers.HeaderCluster); id != fmt.Sprintf("%x", uint64(testCluster)) {
		t.Fatalf("cluster id %q", id)
	}
}

// TestDowngradeIsToldWithoutQuorum: who asks is about to join, and may be the one without whom
// there is no quorum.
func TestDowngradeIsToldWithoutQuorum(t *testing.T) {
	m := newMember(t)
	m.replica.set(func(r *solo) { r.barrierErr = context.DeadlineExceeded })
	w := httptest.NewRecorder()
	peerPort(m).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/downgrade/enabled", nil))
	if w.Code != http.StatusOK || w.Body.String() != "false" {
		t.Fatalf("%d %q", w.Code, w.Body)
	}
}

// A follower asks the leader, over its peer port, and its client sees the leader's answer.
func TestFollowerAsksTheLeader(t *testing.T) {
	leader := newMember(t)
	peer := httptest.NewServer(peerPort(leader))
	defer peer.Close()
	follower := newMember(t)
	const leaderID = 2
	follower.addMember(leaderID, peer.URL, false, true)
	follower.replica.setLeader(leaderID, 0)
	follower.cfg.Leases.Demote(follower.replica.Term())

	_, err := leader.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 7, TTL: 100})
	must(t, err)
	_, err = leader.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k"), Lease: 7})
	must(t, err)
	stream, err := follower.lease.LeaseKeepAlive(t.Context())
	must(t, err)
	for id, want := range map[int64]int64{7: 100, 8: 0} {
		must(t, stream.Send(&pb.LeaseKeepAliveRequest{ID: id}))
		alive, err := stream.Recv()
		must(t, err)
		if alive.TTL != want {
			t.Fatalf("%v", alive)
		}
	}
	ttl, err := follower.lease.LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true})
	must(t, err)
	if ttl.GrantedTTL != 100 || len(ttl.Keys) != 1 || ttl.Header.MemberId != testMember {
		t.Fatalf("%v", ttl)
	}
	ttl, err = follower.lease.LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 8})
	must(t, err)
	if ttl.TTL != -1 {
		t.Fatalf("%v", ttl)
	}

	leader.addMember(9, "http://127.0.0.1:9", true, true)
	promote := func(id uint64) error {
		_, err := follower.cluster.MemberPromote(t.Context(), &pb.MemberPromoteRequest{ID: id})
		return err
	}
	leader.replica.set(func(r *solo) { r.readyErr = replica.ErrLearnerNotReady })
	checkStatus(t, promote(9), codes.FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader")
	leader.replica.set(func(r *solo) { r.readyErr = replica.ErrMemberNotFound })
	checkStatus(t, promote(9), codes.NotFound, "etcdserver: member not found")
	leader.replica.set(func(r *solo) { r.readyErr = nil })
	checkStatus(t, promote(testMember), codes.FailedPrecondition, "etcdserver: can only promote a learner member")
	checkStatus(t, promote(9), codes.OK, "")
	if leader.cfg.State.IsLearner(9) {
		t.Fatal("not promoted")
	}

	// Nobody leads: the follower waits for its request timeout.
	follower.replica.setLeader(0, 0)
	follower.Server.lease.leader.timeout = 50 * time.Millisecond
	_, err = follower.lease.LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 7})
	checkStatus(t, err, codes.Unavailable, "etcdserver: no leader")
}

func TestSnapshotStream(t *testing.T) {
	m := newMember(t)
	for i := range 500 {
		m.put(fmt.Sprintf("key%04d", i), strings.Repeat("v", 200))
	}
	stream, err := m.maintenance.Snapshot(t.Context(), &pb.SnapshotRequest{})
	must(t, err)
	var total, last int
	var remaining uint64
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			break
		}
		must(t, err)
		if len(resp.Blob) > 32<<10 || resp.Version != "3.7.0" {
			t.Fatalf("%d bytes, version %q", len(resp.Blob), resp.Version)
		}
		if remaining > 0 && remaining != resp.RemainingBytes+uint64(len(resp.Blob)) {
			t.Fatalf("%d remained, now %d and %d", remaining, len(resp.Blob), resp.RemainingBytes)
		}
		remaining, last = resp.RemainingBytes, len(resp.Blob)
		total += last
	}
	if last != 32 || total%512 != 32 || remaining != 0 {
		t.Fatalf("%d bytes, the last message %d", total, last)
	}
	if left, _ := os.ReadDir(m.cfg.DataDir); len(left) != 0 {
		t.Fatalf("%s is left behind", left[0].Name())
	}
}
