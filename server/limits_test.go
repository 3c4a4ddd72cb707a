package server

import (
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/state"
)

// TestTotalOps: levels of a transaction multiply, so all are counted.
func TestTotalOps(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) { c.MaxTxnOps = 100; c.Limits.TxnTotalOps = 100 })
	level := func(n int, op *pb.RequestOp) (list []*pb.RequestOp) {
		for range n {
			list = append(list, op)
		}
		return list
	}
	read := opRange(&pb.RangeRequest{Key: []byte("a")})
	_, err := m.kv.Txn(t.Context(), &pb.TxnRequest{Success: level(9, opTxnOf(level(5, read), level(5, read)))}) // 99
	must(t, err)
	_, err = m.kv.Txn(t.Context(), &pb.TxnRequest{Success: level(9, opTxnOf(level(6, read), level(5, read)))})
	checkStatus(t, err, codes.InvalidArgument, "etcdserver: too many operations in txn request: 108 on all levels, --max-txn-total-ops is 100")
}

// TestTxnWork: a transaction that writes may have one delete of any size, and many small ranges,
// but no large ones.
func TestTxnWork(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) { c.Limits.TxnRangeKeys = 2000 })
	for i := range 4000 {
		m.put(fmt.Sprintf("k%04d", i), "v")
	}
	until(t, "the keys are counted", func() bool { n, ok := m.cfg.KV.Estimate([]byte("k"), []byte("l")); return ok && n > 3000 })
	all := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
	few := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 1}
	count := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), CountOnly: true}
	last := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 1, SortOrder: pb.RangeRequest_DESCEND}
	for name, c := range map[string]struct {
		txn  *pb.TxnRequest
		fits bool
	}{
		"one":         {&pb.TxnRequest{Success: ops(opPut("a"), opRange(all))}, false},
		"limited":     {&pb.TxnRequest{Success: ops(opPut("a"), opRange(few), opRange(few), opRange(count))}, true},
		"a delete":    {&pb.TxnRequest{Failure: ops(opPut("a"), opRange(few), opDelete("k1", "l"))}, true},
		"two deletes": {&pb.TxnRequest{Failure: ops(opDelete("k", "k1"), opTxnOf(ops(opDelete("k1", "l")), nil))}, true},
		"a compare": {&pb.TxnRequest{Success: ops(opPut("a")), Compare: []*pb.Compare{
			{Key: []byte("k"), RangeEnd: []byte("l")}}}, false},
		"two":    {&pb.TxnRequest{Success: ops(opPut("a"), opRange(all), opRange(all))}, false},
		"sorted": {&pb.TxnRequest{Success: ops(opPut("a"), opRange(last), opRange(last))}, false},
		"inner":  {&pb.TxnRequest{Success: ops(opPut("a"), opTxnOf(nil, ops(opRange(all))), opTxnOf(ops(opRange(all)), nil))}, false},
		"either": {&pb.TxnRequest{Success: ops(opPut("a")), Failure: ops(opRange(all))}, false},
		"compares": {&pb.TxnRequest{Success: ops(opPut("a")), Compare: []*pb.Compare{
			{Key: []byte("k"), RangeEnd: []byte("l")}, {Key: []byte("k"), RangeEnd: []byte("l")}}}, false},
		"read only":       {&pb.TxnRequest{Success: ops(opRange(all), opRange(all), opTxnOf(ops(opRange(all)), nil))}, true},
		"delete and read": {&pb.TxnRequest{Success: ops(opDelete("k", "k0010"), opRange(all))}, false},
	} {
		_, err := m.kv.Txn(t.Context(), c.txn)
		switch {
		case c.fits && err != nil:
			t.Errorf("%s: %v", name, err)
		case !c.fits && (err == nil || !strings.Contains(err.Error(), "--max-txn-range-keys is 2000")):
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestReadsOutsideTheLog: a transaction that only reads is not in the log, however deep it is
// nested; it waits for what is known to the cluster, and alarms refuse it as they would when it is
// applied.
func TestReadsOutsideTheLog(t *testing.T) {
	m := newMember(t)
	m.put("a", "1")
	before, barriers := len(m.replica.requests()), m.replica.barriers.Load()
	txn := &pb.TxnRequest{Success: ops(opTxnOf(ops(opTxnOf(ops(opRange(&pb.RangeRequest{Key: []byte("a"), Serializable: true})), nil)), nil))}
	resp, err := m.kv.Txn(t.Context(), txn)
	must(t, err)
	m.checkHeader(resp.Header, 2)
	inner := resp.Responses[0].GetResponseTxn().Responses[0].GetResponseTxn()
	if kvs := inner.Responses[0].GetResponseRange().Kvs; len(kvs) != 1 || inner.Header.GetRevision() != 0 {
		t.Errorf("got %v", resp)
	}
	if n := len(m.replica.requests()) - before; n != 0 || m.replica.barriers.Load() == barriers {
		t.Errorf("%d entries, %d barriers", n, m.replica.barriers.Load()-barriers)
	}
	_, err = m.maintenance.Alarm(t.Context(), &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT, MemberID: m.cfg.MemberID})
	must(t, err)
	_, err = m.kv.Txn(t.Context(), txn)
	checkStatus(t, err, codes.DataLoss, "etcdserver: corrupt cluster")
}

// TestAnswerBytes: what cannot be answered is said so, before all of it is read.
func TestAnswerBytes(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) { c.Limits.AnswerBytes = 1000 })
	for i := range 20 {
		m.put(fmt.Sprintf("k%d", i), strings.Repeat("v", 100))
	}
	all := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
	const want = "etcdserver: the answer would be larger than --max-answer-bytes; ask for less at a time, or use RangeStream"
	_, err := m.kv.Range(t.Context(), all)
	checkStatus(t, err, codes.ResourceExhausted, want)
	_, err = m.kv.Txn(t.Context(), &pb.TxnRequest{Success: ops(opRange(all))})
	checkStatus(t, err, codes.ResourceExhausted, want)
	all.Limit = 5
	_, err = m.kv.Range(t.Context(), all)
	must(t, err)
	_, err = m.kv.Txn(t.Context(), &pb.TxnRequest{Success: ops(opRange(all), opRange(all))})
	checkStatus(t, err, codes.ResourceExhausted, want)
}

// TestTxnWorkIsWalked: as long as keys are not counted, they are walked over, no more of them than
// it takes to refuse.
func TestTxnWorkIsWalked(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) { c.Limits.TxnRangeKeys = 50 })
	for i := range 200 {
		m.put(fmt.Sprintf("k%04d", i), "v")
	}
	tn := m.turns.newTurn(t.Context())
	defer tn.end()
	e := m.Server.kv.measured(tn, func(_, _ []byte) (int64, bool) { return 0, false })
	if n, ok := e([]byte("k"), []byte("k0040")); !ok || n != 40 {
		t.Errorf("%d, %v", n, ok)
	}
	if n, ok := e([]byte("k"), []byte("l")); !ok || n <= 50 || n > 100 {
		t.Errorf("%d, %v", n, ok)
	}
	if n, ok := e([]byte("k"), []byte("l")); !ok || n != 50 {
		t.Errorf("it goes on to walk: %d, %v", n, ok)
	}
}

// TestTxnBytes: what the applier would read of values is bounded before the proposal, however few
// keys have them.
func TestTxnBytes(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) { c.Limits.TxnRangeBytes = 10_000 })
	for i := range 20 {
		m.put(fmt.Sprintf("k%02d", i), strings.Repeat("v", 1000))
	}
	all := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
	with := func(edit func(*pb.RangeRequest)) *pb.RangeRequest {
		r := proto.Clone(all).(*pb.RangeRequest)
		edit(r)
		return r
	}
	gone := &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("k15"), PrevKv: true}
	few := &pb.DeleteRangeRequest{Key: []byte("k19"), RangeEnd: []byte("l"), PrevKv: true}
	values := []*pb.Compare{{Key: []byte("k"), RangeEnd: []byte("l"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("v")}}}
	versions := []*pb.Compare{{Key: []byte("k"), RangeEnd: []byte("l"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 1}}}
	del := func(r *pb.DeleteRangeRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}
	}
	const want = "etcdserver: the request writes, and reads more than 10000 bytes, --max-txn-range-bytes; read them in a request of its own"
	for name, c := range map[string]struct {
		txn  *pb.TxnRequest
		fits bool
	}{
		"all":          {&pb.TxnRequest{Success: ops(opPut("a"), opRange(all))}, false},
		"failure":      {&pb.TxnRequest{Success: ops(opPut("a")), Failure: ops(opRange(all))}, false},
		"nested":       {&pb.TxnRequest{Success: ops(opPut("a"), opTxnOf(ops(opRange(all)), nil))}, false},
		"limited":      {&pb.TxnRequest{Success: ops(opPut("a"), opRange(with(func(r *pb.RangeRequest) { r.Limit = 5 })))}, true},
		"twice":        {&pb.TxnRequest{Success: ops(opPut("a"), opRange(with(func(r *pb.RangeRequest) { r.Limit = 5 })), opRange(with(func(r *pb.RangeRequest) { r.Limit = 5 })))}, false},
		"sorted":       {&pb.TxnRequest{Success: ops(opPut("a"), opRange(with(func(r *pb.RangeRequest) { r.Limit, r.SortOrder = 1, pb.RangeRequest_DESCEND })))}, false},
		"keys":         {&pb.TxnRequest{Success: ops(opPut("a"), opRange(with(func(r *pb.RangeRequest) { r.KeysOnly = true })))}, true},
		"count":        {&pb.TxnRequest{Success: ops(opPut("a"), opRange(with(func(r *pb.RangeRequest) { r.CountOnly = true })))}, true},
		"values":       {&pb.TxnRequest{Compare: values, Success: ops(opPut("a"))}, false},
		"versions":     {&pb.TxnRequest{Compare: versions, Success: ops(opPut("a"))}, true},
		"read only":    {&pb.TxnRequest{Compare: values, Success: ops(opRange(all), opRange(all))}, true},
		"delete":       {&pb.TxnRequest{Success: ops(del(gone))}, false},
		"small delete": {&pb.TxnRequest{Failure: ops(del(few)), Compare: versions}, true},
	} {
		proposed := len(m.replica.requests())
		_, err := m.kv.Txn(t.Context(), c.txn)
		switch {
		case c.fits && err != nil:
			t.Errorf("%s: %v", name, err)
		case !c.fits && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v", name, err)
		case !c.fits && len(m.replica.requests()) != proposed:
			t.Errorf("%s is in the log", name)
		}
	}
	_, err := m.kv.DeleteRange(t.Context(), gone)
	checkStatus(t, err, codes.InvalidArgument, want)
	if m.turns.slots.Waiting() != 0 || m.turns.slots.Contended() {
		t.Error("a turn is left")
	}
	resp, err := m.kv.DeleteRange(t.Context(), few)
	must(t, err)
	if len(resp.PrevKvs) != 1 || len(resp.PrevKvs[0].Value) != 1000 {
		t.Errorf("%v", resp)
	}
	gone.PrevKv = false
	_, err = m.kv.DeleteRange(t.Context(), gone)
	must(t, err)
}

// Headers of a call are bounded, whatever they take when they are packed; a token of some KB is far
// from that.
func TestHeadersAreBounded(t *testing.T) {
	m := newMember(t)
	with := func(bytes int) error {
		_, err := m.kv.Range(metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("y", bytes)), &pb.RangeRequest{Key: []byte("k")})
		return err
	}
	must(t, with(maxHeaderBytes/2))
	if err := with(maxHeaderBytes + 1); err == nil || !strings.Contains(err.Error(), "header list size") {
		t.Fatalf("headers over %d bytes: %v", maxHeaderBytes, err)
	}
}
