package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
)

// zapPanic lets tests see a stop: the process would have ended.
type zapPanic struct{}

func (zapPanic) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {}

func observed() (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(zap.DebugLevel)
	return panicLogger(zap.New(core)), logs
}

// stops runs f, which must stop the machine, and gives the reason.
func stops(t *testing.T, f func()) (reason string) {
	t.Helper()
	defer func() {
		p := recover()
		stop, ok := p.(fatalStop)
		if !ok {
			t.Fatalf("did not stop but gave %v", p)
		}
		reason = stop.Error()
	}()
	f()
	return
}

func TestStops(t *testing.T) {
	newer := protowire.AppendBytes(protowire.AppendTag(nil, 1400, protowire.BytesType), []byte("x"))
	unknown := new(pb.InternalRaftRequest)
	if err := proto.Unmarshal(newer, unknown); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		f    func(r *rig)
		want string
	}{
		{"unknown request", func(r *rig) { r.do(unknown) }, "upgrade this member"},
		{"gap", func(r *rig) { r.Apply([]command.Entry{{Index: 7, Term: 1}}) }, "entry 7 is to be applied after entry 1"},
		{"gap inside", func(r *rig) { r.Apply([]command.Entry{{Index: 2, Term: 1}, {Index: 4, Term: 1}}) }, "entry 4"},
		{"change in batch", func(r *rig) { r.Apply([]command.Entry{{Index: 2, Term: 1, Change: &command.Change{}}}) }, "member change"},
		{"gap before change", func(r *rig) { r.ApplyChange(command.Entry{Index: 9, Term: 1, Change: &command.Change{}}) }, "member change 9"},
		{"no change", func(r *rig) { r.ApplyChange(command.Entry{Index: 2, Term: 1}) }, "among the member changes"},
		{"panic inside", func(r *rig) { r.cfg.Sink = nil; r.Machine.cfg.KV = nil; r.do(put("a", "b")) }, "broken invariant"},
	} {
		t.Run(c.name, func(t *testing.T) {
			logger, logs := observed()
			r := newRig(t, Config{Logger: logger})
			r.do(put("a", "1"))
			reason := stops(t, func() { c.f(r) })
			if !strings.Contains(reason, c.want) {
				t.Errorf("reason %q, want %q", reason, c.want)
			}
			if n := logs.FilterLevelExact(zap.FatalLevel).Len(); n != 1 {
				t.Errorf("%d fatal lines", n)
			}
			if r.Machine.spare.b != nil {
				r.Machine.spare.b.Close()
			}
		})
	}
}

// A field that an older version does not know beside a request that it knows is passed over, as
// protobuf means it.
func TestUnknownFieldBesideKnownRequest(t *testing.T) {
	r := newRig(t, Config{})
	req := put("a", "1")
	req.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1400, protowire.VarintType), 1))
	if res := r.do(req); res.Err != nil || res.Response == nil {
		t.Fatalf("got %v", resultText(res))
	}
}

func TestSlowAndFailedRequestsAreLogged(t *testing.T) {
	logger, logs := observed()
	reg := prometheus.NewRegistry()
	r := newRig(t, Config{Logger: logger, Metrics: NewMetrics(reg), WarningApply: time.Nanosecond})
	r.do(put("a", "very secret"))
	slow := logs.FilterMessage("apply request took too long").All()
	if len(slow) != 1 {
		t.Fatalf("%d lines", len(slow))
	}
	fields := slow[0].ContextMap()
	for _, f := range []string{"took", "expected-duration", "prefix", "request", "response"} {
		if _, ok := fields[f]; !ok {
			t.Errorf("no field %s in %v", f, fields)
		}
	}
	if request := fields["request"].(string); strings.Contains(request, "secret") || !strings.Contains(request, "value_size:11") {
		t.Errorf("request: %s", request)
	}
	if !strings.HasPrefix(fields["response"].(string), "size:") {
		t.Errorf("response: %v", fields["response"])
	}
	r.do(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("a"), Lease: 5}})
	r.do(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 1}})
	r.do(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 1}}) // ErrCompacted is no failure
	failed := logs.FilterMessage("failed to apply request").All()
	if len(failed) != 1 || failed[0].ContextMap()["error"] != "etcdserver: requested lease not found" {
		t.Errorf("failed: %v", failed)
	}
	r.WarnSlowRange(time.Second, 0, &pb.RangeRequest{Key: []byte("a")}, &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{{}}}, nil)
	r.WarnSlowRange(0, 0, &pb.RangeRequest{Key: []byte("a")}, nil, nil)
	r.WarnSlowKeys(time.Second, 0, &pb.RangeRequest{Key: []byte("a")}, 3, 40, nil)
	r.WarnSlowKeys(time.Second, 0, &pb.RangeRequest{Key: []byte("a")}, 3, 0, errors.New("broken"))
	r.WarnSlowKeys(0, 0, &pb.RangeRequest{Key: []byte("a")}, 3, 40, nil)
	r.WarnSlowTxn(time.Second, 0, &pb.TxnRequest{}, &pb.TxnResponse{Responses: []*pb.ResponseOp{{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{}}}}}, nil)
	var reads []string
	for _, l := range logs.FilterMessage("apply request took too long").All() {
		if p := l.ContextMap()["prefix"].(string); p != "" {
			reads = append(reads, p+l.ContextMap()["response"].(string))
		}
	}
	if got := fmt.Sprintf("%q", reads); got != `["read-only range range_response_count:1 size:2" "read-only range range_response_count:3 size:40" "read-only range " "read-only txn responses:<range_response_count:0> size:4"]` {
		t.Errorf("reads: %s", got)
	}
	series := scrape(t, reg)
	for name, want := range map[string]float64{
		"etcd_server_apply_duration_seconds,op=Put,success=true,version=v3":        1,
		"etcd_server_apply_duration_seconds,op=Put,success=false,version=v3":       1,
		"etcd_server_apply_duration_seconds,op=Compaction,success=true,version=v3": 2,
	} {
		if series[name] != want {
			t.Errorf("%s: %v, want %v", name, series[name], want)
		}
	}
	if v := series["etcd_server_slow_apply_total"]; v < 6 {
		t.Errorf("slow_apply_total %v", v)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, Config{Metrics: NewMetrics(reg), MemberID: 0xab, ClusterID: 1})
	add := func(id uint64, learner bool) {
		c := &command.Change{MemberID: id, Member: command.Member{ID: id, IsLearner: learner, PeerURLs: []string{fmt.Sprint(id)}}}
		if learner {
			c.Type = raftpb.ConfChangeAddLearnerNode
		}
		if res := r.change(c); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	add(0xab, true)
	add(2, false)
	if res := r.change(&command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: 2}); res.Err != ErrLastVoter {
		t.Fatalf("the last voter was removed: %v", res.Err)
	}
	add(3, false)
	r.change(&command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: 2})
	req := func(s func(*pb.InternalRaftRequest)) {
		r0 := &pb.InternalRaftRequest{}
		s(r0)
		r.do(r0)
	}
	req(func(r *pb.InternalRaftRequest) {
		r.Alarm = &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 0xab, Alarm: pb.AlarmType_NOSPACE}
	})
	for _, v := range []string{"3.0.0", "3.7.0"} {
		req(func(r *pb.InternalRaftRequest) { r.ClusterVersionSet = versionSet(v) })
	}
	want := map[string]float64{
		"etcd_cluster_version,cluster_version=3.0":                                        0,
		"etcd_cluster_version,cluster_version=3.7":                                        1,
		"etcd_debugging_server_alarms,alarm_type=NOSPACE,server_id=ab":                    1,
		"etcd_network_known_peers,Local=ab,Remote=2":                                      0,
		"etcd_network_known_peers,Local=ab,Remote=3":                                      1,
		"etcd_network_known_peers,Local=ab,Remote=ab":                                     1,
		"etcd_server_is_learner":                                                          1,
		"etcd_server_snapshot_apply_in_progress_total":                                    0,
		"etcd_server_slow_apply_total":                                                    0,
		"etcd_server_apply_duration_seconds,op=Alarm,success=true,version=v3":             1,
		"etcd_server_apply_duration_seconds,op=ClusterVersionSet,success=true,version=v3": 2,
	}
	if got := scrape(t, reg); !maps.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// scrape gives counters and gauges as lines, and of histograms the number of observations.
func scrape(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "," + l.GetName() + "=" + l.GetValue()
			}
			switch {
			case m.Counter != nil:
				got[name] = m.GetCounter().GetValue()
			case m.Gauge != nil:
				got[name] = m.GetGauge().GetValue()
			default:
				got[name] = float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return got
}

func TestRefusedChangeMovesTheIndexOnly(t *testing.T) {
	called := 0
	r := newRig(t, Config{OnMembership: func() { called++ }})
	cs := &raftpb.ConfState{Voters: []uint64{1}}
	res := r.ApplyChange(command.Entry{Index: 1, Term: 1, Change: &command.Change{MemberID: 9}, ConfState: cs, Refused: ErrMemberNotFound})
	if !errors.Is(res.Err, ErrMemberNotFound) || len(res.Members) != 0 || called != 0 {
		t.Fatalf("got %+v, told %d times", res, called)
	}
	if index, _ := r.Applied(); index != 1 || !proto.Equal(r.ConfState(), cs) {
		t.Fatalf("applied %d, %v", index, r.ConfState())
	}
	r.change(&command.Change{MemberID: 9, Member: command.Member{ID: 9}})
	if called != 1 {
		t.Fatal("not told of a change")
	}
	r.reopen()
	if !proto.Equal(r.ConfState(), cs) {
		t.Fatal("raft's configuration is lost over a restart")
	}
}

func TestReadTxn(t *testing.T) {
	r := newRig(t, Config{})
	r.do(put("a", "1"))
	r.do(put("b", "2"))
	view := r.kv.View()
	defer view.Close()
	r.do(put("a", "later"))
	read := func(key string, rev int64) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key), Revision: rev}}}
	}
	resp, err := ReadTxn(context.Background(), view, &pb.TxnRequest{
		Compare: []*pb.Compare{{Target: pb.Compare_VALUE, Key: []byte("a"), TargetUnion: &pb.Compare_Value{Value: []byte("1")}}},
		Success: []*pb.RequestOp{read("a", 0), read("b", 0)},
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := text(resp); !strings.Contains(got, `value:"1"`) || !resp.Succeeded || resp.Header.Revision != 3 {
		t.Errorf("got %s", got)
	}
	if _, err := ReadTxn(context.Background(), view, &pb.TxnRequest{Success: []*pb.RequestOp{read("a", 99)}}, 0); err == nil {
		t.Error("read the future")
	}
	if _, err := ReadTxn(context.Background(), view, &pb.TxnRequest{Success: []*pb.RequestOp{{}}}, 0); !errors.Is(err, ErrNotReadOnly) {
		t.Errorf("got %v", err)
	}
}

// TestReadTxnNested: transactions in transactions that only read are answered as the log would
// answer them.
func TestReadTxnNested(t *testing.T) {
	r := newRig(t, Config{})
	r.do(put("a", "1"))
	r.do(put("b", "2"))
	key := func(key string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
	}
	nest := func(compare string, success, failure *pb.RequestOp) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{
			Compare: []*pb.Compare{{Target: pb.Compare_VALUE, Key: []byte(compare), TargetUnion: &pb.Compare_Value{Value: []byte("1")}}},
			Success: []*pb.RequestOp{success}, Failure: []*pb.RequestOp{failure, key("b")},
		}}}
	}
	txn := &pb.TxnRequest{Success: []*pb.RequestOp{key("b"), nest("a", nest("b", key("b"), key("a")), key("b")), key("a")}}
	want := r.do(&pb.InternalRaftRequest{Txn: txn})
	view := r.kv.View()
	defer view.Close()
	got, err := ReadTxn(context.Background(), view, txn, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want.Response) {
		t.Errorf("read  %s\nas applied %s", text(got), text(want.Response))
	}
	if _, err := ReadTxn(context.Background(), view, txn, 4); !errors.Is(err, mvcc.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	writing := &pb.TxnRequest{Success: []*pb.RequestOp{nest("a", key("a"), &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("c")}}})}}
	if _, err := ReadTxn(context.Background(), view, writing, 0); !errors.Is(err, ErrNotReadOnly) {
		t.Errorf("got %v", err)
	}
}

// TestFewKeepFew: what a sorted or filtered range leaves out is not kept by what it answers, in
// whatever number such ranges stand in one transaction.
func TestFewKeepFew(t *testing.T) {
	r := newRig(t, Config{})
	const keys, ranges = 2000, 300
	for i := range keys {
		r.do(put(fmt.Sprintf("k%05d", i), strings.Repeat("v", 200)))
	}
	for name, rr := range map[string]*pb.RangeRequest{
		"sorted":           {Limit: 1, SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_VALUE},
		"filtered":         {Limit: 1, MinModRevision: 1},
		"few":              {MinModRevision: keys},
		"sorted, no value": {Limit: 1, SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_KEY, KeysOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			rr.Key, rr.RangeEnd = []byte("k"), []byte("l")
			txn := &pb.TxnRequest{}
			for range ranges {
				txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: rr}})
			}
			heap := func() int64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			before := heap()
			result := r.do(&pb.InternalRaftRequest{Txn: txn})
			if kept := heap() - before; kept > 8<<20 { // 300 times 64 KiB are 19 MiB, 300 times all keys 180
				t.Errorf("the answers of %d ranges keep %d bytes", ranges, kept)
			}
			kvs := result.Response.(*pb.TxnResponse).Responses[ranges-1].GetResponseRange().Kvs
			if n := len(kvs); n < 1 || n > 3 || !strings.HasPrefix(string(kvs[0].Key), "k") {
				t.Errorf("%d keys", n)
			}
		})
	}
}

// TestGivenUp: once nobody waits for a transaction its ranges are not read any more, and what it
// writes is the same.
func TestGivenUp(t *testing.T) {
	read := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a")}}}
	write := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("b"), Value: []byte("2")}}}
	for _, gone := range []bool{false, true} {
		r := newRig(t, Config{})
		r.do(put("a", "1"))
		var up atomic.Bool
		up.Store(gone)
		index, term := r.Applied()
		result := r.Apply([]command.Entry{{Index: index + 1, Term: term, GivenUp: &up,
			Request: &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: []*pb.RequestOp{read, write}}}}})[0]
		if result.Err != nil {
			t.Fatal(result.Err)
		}
		if n := len(result.Response.(*pb.TxnResponse).Responses[0].GetResponseRange().Kvs); (n == 0) != gone {
			t.Errorf("given up %v: %d keys were read", gone, n)
		}
		got, err := RangeResponse(context.Background(), r.kv, &pb.RangeRequest{Key: []byte("b")})
		if err != nil || len(got.Kvs) != 1 {
			t.Errorf("given up %v: what it writes is not there: %v %v", gone, got, err)
		}
	}
}

// TestAnswerTooLarge: a transaction that asks for too much is applied like on any other member, and
// says so.
func TestAnswerTooLarge(t *testing.T) {
	r := newRig(t, Config{MaxAnswerBytes: 1000})
	r.do(put("a", strings.Repeat("v", 900)))
	read := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("b")}}}
	write := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("b"), Value: []byte("2")}}}
	if result := r.do(&pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: []*pb.RequestOp{read, write}}}); result.Err != nil {
		t.Errorf("got %v", result.Err)
	}
	result := r.do(&pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: []*pb.RequestOp{read, read, write}}})
	if !errors.Is(result.Err, ErrTxnAnswerTooLarge) {
		t.Errorf("got %v", result.Err)
	}
	got, err := RangeResponse(context.Background(), r.kv, &pb.RangeRequest{Key: []byte("b")})
	if err != nil || len(got.Kvs) != 1 || got.Kvs[0].Version != 2 {
		t.Errorf("it was not applied: %v %v", got, err)
	}
	both := &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("c")}
	if _, err := RangeWithin(context.Background(), r.kv, both, 900); !errors.Is(err, mvcc.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	keys := 0
	count := func(*mvccpb.KeyValue) { keys++ }
	if _, err := RangeEach(context.Background(), r.kv, both, 901, count); !errors.Is(err, mvcc.ErrTooLarge) || keys != 1 {
		t.Errorf("got %v after %d keys", err, keys)
	}
	both.Limit = 1 // what is not in the answer is not read
	if resp, err := RangeEach(context.Background(), r.kv, both, 901, count); err != nil || keys != 2 || !resp.More || resp.Count != 2 {
		t.Errorf("got %v %v after %d keys", resp, err, keys)
	}
}

// TestPreviousValues: those of a delete are read where somebody waits for them, and up to a bound;
// what is deleted is the same.
func TestPreviousValues(t *testing.T) {
	gone := new(atomic.Bool)
	gone.Store(true)
	inTxn := func(d *pb.DeleteRangeRequest) *pb.InternalRaftRequest {
		return &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: d}}}}}
	}
	plain := func(d *pb.DeleteRangeRequest) *pb.InternalRaftRequest { return &pb.InternalRaftRequest{DeleteRange: d} }
	for name, request := range map[string]func(*pb.DeleteRangeRequest) *pb.InternalRaftRequest{"alone": plain, "in a transaction": inTxn} {
		for _, c := range []struct {
			name  string
			entry command.Entry
			bytes int64
			prevs int
			err   error
		}{
			{"all", command.Entry{}, 0, 3, nil},
			{"within the bound", command.Entry{}, 4000, 3, nil},
			{"beyond it", command.Entry{}, 2000, 0, ErrTxnAnswerTooLarge},
			{"unawaited", command.Entry{Unawaited: true}, 2000, 0, nil},
			{"given up", command.Entry{GivenUp: gone}, 2000, 0, nil},
		} {
			r := newRig(t, Config{MaxAnswerBytes: c.bytes})
			for _, key := range []string{"a", "b", "c", "d"} {
				r.do(put(key, strings.Repeat("v", 900)))
			}
			index, term := r.Applied()
			c.entry.Index, c.entry.Term = index+1, term
			c.entry.Request = request(&pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("d"), PrevKv: true})
			result := r.Apply([]command.Entry{c.entry})[0]
			if !errors.Is(result.Err, c.err) {
				t.Errorf("%s %s: %v", c.name, name, result.Err)
			}
			resp, ok := result.Response.(*pb.DeleteRangeResponse)
			if !ok {
				resp = result.Response.(*pb.TxnResponse).Responses[0].GetResponseDeleteRange()
			}
			if resp.Deleted != 3 || len(resp.PrevKvs) != c.prevs {
				t.Errorf("%s %s: %d deleted, %d of them told", c.name, name, resp.Deleted, len(resp.PrevKvs))
			}
			left, err := RangeResponse(context.Background(), r.kv, &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z")})
			if err != nil || len(left.Kvs) != 1 {
				t.Errorf("%s %s: left is %v, %v", c.name, name, left, err)
			}
		}
	}
}

// keptRanger notes what a range of its has shown and what it has kept.
type keptRanger struct {
	Ranger
	shown, kept int
}

func (k *keptRanger) Range(ctx context.Context, key, end []byte, o mvcc.RangeOptions) (mvcc.RangeResult, error) {
	if each := o.Each; each != nil {
		o.Each = func(kv *mvccpb.KeyValue) bool { k.shown++; return each(kv) }
	}
	res, err := k.Ranger.Range(ctx, key, end, o)
	k.kept += len(res.KVs)
	return res, err
}

// TestComparesKeepNothing: a compare of many keys ends at the first that decides it, and keeps
// none.
func TestComparesKeepNothing(t *testing.T) {
	r := newRig(t, Config{})
	for i := range 100 {
		r.do(put(fmt.Sprintf("k%03d", i), fmt.Sprint(i)))
	}
	compare := func(result pb.Compare_CompareResult, value string) *pb.Compare {
		return &pb.Compare{Key: []byte("k"), RangeEnd: []byte("l"), Target: pb.Compare_VALUE, Result: result,
			TargetUnion: &pb.Compare_Value{Value: []byte(value)}}
	}
	for _, c := range []struct {
		compare *pb.Compare
		holds   bool
		shown   int
	}{
		{compare(pb.Compare_NOT_EQUAL, "x"), true, 100},
		{compare(pb.Compare_EQUAL, "0"), false, 2},
		{compare(pb.Compare_NOT_EQUAL, "41"), false, 42},
		{&pb.Compare{Key: []byte("m"), RangeEnd: []byte("n"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{}}, true, 0},
		{&pb.Compare{Key: []byte("m"), RangeEnd: []byte("n"), Target: pb.Compare_VALUE, Result: pb.Compare_NOT_EQUAL}, false, 0},
	} {
		k := &keptRanger{Ranger: r.kv}
		holds, err := compareHolds(t.Context(), k, c.compare)
		if err != nil || holds != c.holds || k.shown != c.shown || k.kept != 0 {
			t.Errorf("%v: %v, %v; %d keys seen, %d kept", c.compare, holds, err, k.shown, k.kept)
		}
	}
}

func TestCost(t *testing.T) {
	p := &pb.PutRequest{Key: []byte("abc"), Value: []byte("de")}
	op := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}}
	inner := &pb.TxnRequest{Success: []*pb.RequestOp{op}, Failure: []*pb.RequestOp{op, op}}
	outer := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}}, op}, Failure: []*pb.RequestOp{op}}
	for want, req := range map[int64]any{
		261: p, 522: inner, 783: outer, 64: &pb.LeaseGrantRequest{}, 0: &pb.DeleteRangeRequest{},
	} {
		if got := Cost(req); got != want {
			t.Errorf("%T costs %d, want %d", req, got, want)
		}
	}
}

// Readers of members, alarms and positions run beside the applier.
func TestReadersBesideTheApplier(t *testing.T) {
	r := newRig(t, Config{})
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			r.Members()
			r.IsRemoved(1)
			r.Alarms()
			r.AlarmActive(pb.AlarmType_NOSPACE)
			r.ClusterVersion()
			r.ConfState()
			r.Applied()
			r.QuotaFits(&pb.PutRequest{})
			r.leases.List()
			r.CheckChange(&command.Change{MemberID: 3, Member: command.Member{ID: 3, PeerURLs: []string{"u"}}})
			r.kv.Range(context.Background(), []byte("k"), []byte("l"), rangeAll)
		}
	}()
	r.feed(history(seed(t), 300), func() int { return 7 }, nil)
	close(stop)
	<-done
}

// TestOverQuotaIsTold: of a write that was applied although it did not fit, and of no other.
func TestOverQuotaIsTold(t *testing.T) {
	told := 0
	r := newRig(t, Config{QuotaBytes: 1, OnNoSpace: func() { told++ }})
	put := func() command.Result {
		return r.do(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}})
	}
	if res := put(); res.Response == nil || res.Err != ErrNoSpace || told != 1 {
		t.Errorf("%+v, told %d times", res, told)
	}
	r.do(&pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("k")}})
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// Two members whose --max-learners differ apply the same entries: they must have the same
// members afterwards. The limit is in the entry, by the flag of who proposed it.
func TestLearnerLimitIsTheEntrys(t *testing.T) {
	r := newRig(t, Config{})
	apply := func(c command.Change) error {
		index, _ := r.Applied()
		e := command.Entry{Index: index + 1, Term: 1, Change: &c}
		// As it comes out of the log.
		change, err := command.DecodeChange(c.Encode())
		if err != nil {
			t.Fatal(err)
		}
		e.Change, e.Refused = change, r.CheckChange(change)
		return r.ApplyChange(e).Err
	}
	member := func(id uint64, learner bool) command.Member {
		return command.Member{ID: id, PeerURLs: []string{fmt.Sprintf("http://m%d", id)}, IsLearner: learner}
	}
	if err := apply(command.Change{Type: raftpb.ConfChangeAddNode, MemberID: 1, Member: member(1, false)}); err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		limit int
		want  error
	}{{-1, ErrTooManyLearners}, {1, nil}, {1, ErrTooManyLearners}, {2, nil}, {2, ErrTooManyLearners}, {0, nil}} {
		id := uint64(10 + i)
		err := apply(command.Change{Type: raftpb.ConfChangeAddLearnerNode, MemberID: id, Member: member(id, true), MaxLearners: step.limit})
		if err != step.want {
			t.Errorf("learner %d with a limit of %d: %v, want %v", id, step.limit, err, step.want)
		}
	}
}

// TestDamageIsTold: whatever entry meets a damaged file, who heals hears of it before the process
// ends. Otherwise the next start would meet it again in the same entry, and so on.
func TestDamageIsTold(t *testing.T) {
	logger, _ := observed()
	var told []error
	r := newRig(t, Config{Logger: logger, Damaged: func(err error) { told = append(told, err) }})
	a := &application{m: r.Machine}
	damage := fmt.Errorf("store: %w", pebble.ErrCorruption)
	if reason := stops(t, func() { a.failed("put", damage) }); !strings.Contains(reason, "put: store: ") || len(told) != 1 || told[0] != damage {
		t.Errorf("%s; told of %v", reason, told)
	}
	if stops(t, func() { a.failed("put", errors.New("other")) }); len(told) != 1 {
		t.Errorf("told of %v", told)
	}
	// No error of the store is stopped for in another way.
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if found := regexp.MustCompile(`a\.stop\(.*\berr\b.*`).FindAllString(string(text), -1); !strings.HasSuffix(name, "_test.go") && len(found) > 0 && name != "application.go" || len(found) > 1 {
			t.Errorf("%s: %q", name, found)
		}
	}
}
