package cache

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/state"
)

var (
	flagSeed = flag.Uint64("cache.seed", 0, "run this world alone")
	flagRuns = flag.Uint64("cache.runs", 150, "how many worlds")
)

const (
	worldStaleness = time.Second
	worldBytes     = 40 << 10
	worldPrefix    = "n/"
)

// A store is what the cluster holds, at each revision.
type store []map[string]*mvccpb.KeyValue // [0] is revision 1

// A moment is a store at one revision, for state.RangeResponse.
type moment struct {
	kvs map[string]*mvccpb.KeyValue
	rev int64
}

func (m moment) Range(_ context.Context, key, end []byte, o mvcc.RangeOptions) (mvcc.RangeResult, error) {
	r := mvcc.RangeResult{Rev: m.rev}
	for _, k := range slices.Sorted(maps.Keys(m.kvs)) {
		in := k == string(key)
		if len(end) > 0 {
			in = k >= string(key) && (string(end) == "\x00" || k < string(end))
		}
		if !in {
			continue
		}
		if r.Count++; !o.CountOnly && (o.Limit <= 0 || int64(len(r.KVs)) < o.Limit) {
			r.KVs = append(r.KVs, m.kvs[k])
		}
	}
	return r, nil
}

// A world is a model of a cluster with a Cache before it, and clients that read. Everything happens
// in steps that a seed chooses, and each takes some milliseconds.
type world struct {
	t     *testing.T
	rand  *rand.Rand
	now   time.Duration
	cache *Cache

	store     store
	events    [][]*mvccpb.Event // [0] makes revision 1, and is empty
	written   []time.Duration   // when each revision was there
	compacted int64
	users     bool
	usersAt   time.Duration // since when there are, or are none

	// The member that the stream goes to. It may be behind. What it sends of watches comes by two
	// queues, as etcd's does.
	up        bool
	lonely    bool // it has lost its leader, and goes on as if nothing had happened
	applied   int64
	requests  []*pb.WatchRequest
	watches   map[int64]*served
	announced map[int64]bool
	controls  []*pb.WatchResponse
	data      []*pb.WatchResponse
	questions []*Question
	answers   []reply

	conns   []int64 // the newest revision that each has seen
	waiting []*reading

	hits, waits, stale int
}

type served struct {
	key, end string
	next     int64
}

type reply struct {
	question *Question
	response *pb.RangeResponse
	err      error
	refused  bool
}

// reading is a read of a client.
type reading struct {
	Read
	conn         int
	serializable bool
	request      *pb.RangeRequest
	began        time.Duration
	after        int64 // the newest revision when it began
	over         bool
}

func (w *world) Send(r *pb.WatchRequest) {
	if !w.up {
		w.t.Fatal("a request without a stream")
	}
	w.requests = append(w.requests, r)
}

func (w *world) Ask(q *Question) {
	if !w.up {
		w.t.Fatal("a question without a stream")
	}
	w.questions = append(w.questions, q)
}

func (w *world) Notice(string, string) {}

func (w *world) oneOf(n int) bool { return w.rand.IntN(n) == 0 }

func (w *world) newest() int64 { return int64(len(w.store)) }

func (w *world) key() string { return worldPrefix + string(rune('a'+w.rand.IntN(6))) }

func (w *world) write() {
	rev := w.newest() + 1
	kvs := maps.Clone(w.store[rev-2])
	var events []*mvccpb.Event
	for range 1 + w.rand.IntN(2) {
		key := w.key()
		old := kvs[key]
		if slices.ContainsFunc(events, func(e *mvccpb.Event) bool { return string(e.Kv.Key) == key }) {
			continue
		}
		if old != nil && w.oneOf(3) {
			delete(kvs, key)
			events = append(events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev}})
			continue
		}
		kv := &mvccpb.KeyValue{Key: []byte(key), CreateRevision: rev, ModRevision: rev, Version: 1, Value: bytes.Repeat([]byte{byte(rev)}, w.rand.IntN(60))}
		if old != nil {
			kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		}
		if w.oneOf(20) {
			kv.Lease = 7
		}
		if w.oneOf(200) {
			kv.Value = make([]byte, worldBytes/4)
		}
		kvs[key] = kv
		events = append(events, &mvccpb.Event{Kv: kv})
	}
	if w.oneOf(4) { // elsewhere
		events, kvs = nil, w.store[rev-2]
	}
	w.store, w.events, w.written = append(w.store, kvs), append(w.events, events), append(w.written, w.now)
}

// small writes values that find room.
func (w *world) small() {
	rev := w.newest() + 1
	kvs := make(map[string]*mvccpb.KeyValue)
	var events []*mvccpb.Event
	for _, key := range "abcdef" {
		kv := &mvccpb.KeyValue{Key: []byte(worldPrefix + string(key)), CreateRevision: rev, ModRevision: rev, Version: 1}
		kvs[string(kv.Key)] = kv
		events = append(events, &mvccpb.Event{Kv: kv})
	}
	w.store, w.events, w.written = append(w.store, kvs), append(w.events, events), append(w.written, w.now)
}

func (w *world) header(rev int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: 1, MemberId: 2, RaftTerm: 3, Revision: rev}
}

// serve has the member do something for the stream.
func (w *world) serve() {
	if w.applied < w.newest() && !w.lonely && w.oneOf(2) {
		w.applied++
		return
	}
	if len(w.questions) > 0 && w.oneOf(2) {
		i := w.rand.IntN(len(w.questions))
		q := w.questions[i]
		if q.Barrier() && w.lonely && !w.oneOf(20) {
			return // it waits for a leader
		}
		w.questions = slices.Delete(w.questions, i, i+1)
		w.answers = append(w.answers, w.reply(q))
		return
	}
	if len(w.requests) > 0 && w.oneOf(2) {
		r := w.requests[0]
		w.requests = w.requests[1:]
		w.request(r)
		return
	}
	if len(w.watches) == 0 {
		return
	}
	ids := slices.Sorted(maps.Keys(w.watches))
	id := ids[w.rand.IntN(len(ids))]
	s := w.watches[id]
	if s.next < w.compacted && s.next <= w.applied && w.compacted <= w.applied {
		delete(w.watches, id)
		w.data = append(w.data, &pb.WatchResponse{Header: w.header(w.applied), WatchId: id, Canceled: true, CompactRevision: w.compacted})
		return
	}
	var events []*mvccpb.Event
	for limit := 1 + w.rand.IntN(3); s.next <= w.applied && limit > 0; s.next++ {
		all := len(events)
		for _, e := range w.events[s.next-1] {
			if (Interval{s.key, s.end}).covers(e.Kv.Key, nil) {
				events = append(events, e)
			}
		}
		if len(events) > all {
			limit--
		}
	}
	if len(events) > 0 {
		w.data = append(w.data, proto.Clone(&pb.WatchResponse{Header: w.header(w.applied), WatchId: id, Events: events}).(*pb.WatchResponse))
	}
}

func (w *world) request(r *pb.WatchRequest) {
	switch {
	case r.GetCreateRequest() != nil:
		c := r.GetCreateRequest()
		if w.users {
			w.controls = append(w.controls, &pb.WatchResponse{Header: w.header(w.applied), WatchId: noID, Created: true, Canceled: true, CancelReason: "denied"})
			return
		}
		w.controls = append(w.controls, &pb.WatchResponse{Header: w.header(w.applied), WatchId: c.WatchId, Created: true})
		w.watches[c.WatchId] = &served{key: string(c.Key), end: string(c.RangeEnd), next: c.StartRevision}
	case r.GetCancelRequest() != nil:
		id := r.GetCancelRequest().WatchId
		if w.watches[id] != nil {
			delete(w.watches, id)
			w.controls = append(w.controls, &pb.WatchResponse{Header: w.header(w.applied), WatchId: id, Canceled: true})
		}
	default:
		for _, s := range w.watches {
			if s.next <= w.applied {
				return // as etcd: no answer while one is behind
			}
		}
		w.data = append(w.data, &pb.WatchResponse{Header: w.header(w.applied), WatchId: noID})
	}
}

var errWorld = errors.New("the member has an error")

func (w *world) reply(q *Question) reply {
	switch {
	case w.users:
		return reply{question: q, err: errWorld, refused: true}
	case w.oneOf(30), q.Request.Revision != 0 && q.Request.Revision < w.compacted:
		return reply{question: q, err: errWorld}
	case q.Barrier():
		w.applied = w.newest()
		return reply{question: q, response: &pb.RangeResponse{Header: w.header(w.applied)}}
	}
	rev := w.applied
	if q.Request.Revision != 0 {
		rev = q.Request.Revision
	}
	r, err := state.RangeResponse(context.Background(), moment{w.store[rev-1], w.applied}, q.Request)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header = w.header(w.applied)
	return reply{question: q, response: proto.Clone(r).(*pb.RangeResponse)}
}

// hear has something come of what the member has sent.
func (w *world) hear() {
	if len(w.answers) > 0 && w.oneOf(2) {
		i := w.rand.IntN(len(w.answers))
		a := w.answers[i]
		w.answers = slices.Delete(w.answers, i, i+1)
		w.cache.Answered(w.now, a.question, a.response, a.err, a.refused)
		return
	}
	var r *pb.WatchResponse
	switch {
	case !w.up:
		return
	case len(w.data) > 0 && (len(w.controls) == 0 || w.oneOf(2)) && (w.data[0].WatchId == noID || w.announced[w.data[0].WatchId]):
		r, w.data = w.data[0], w.data[1:]
	case len(w.controls) > 0:
		r, w.controls = w.controls[0], w.controls[1:]
		w.announced[r.WatchId] = true
	default:
		return
	}
	if err := w.cache.Response(w.now, r); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) connect() {
	w.up, w.lonely = true, false
	w.requests, w.controls, w.data, w.watches, w.announced = nil, nil, nil, make(map[int64]*served), make(map[int64]bool)
	w.applied = max(1, w.newest()-w.rand.Int64N(6), w.compacted)
	w.cache.Up(w.now)
}

func (w *world) disconnect() {
	w.up = false
	for _, q := range w.questions { // of these some were answered
		w.answers = append(w.answers, reply{question: q, err: errWorld})
	}
	w.questions = nil
	w.cache.Down(w.now)
}

func (w *world) newRequest() *pb.RangeRequest {
	r := &pb.RangeRequest{Key: []byte(w.key()), Serializable: w.oneOf(2)}
	switch w.rand.IntN(4) {
	case 0:
		r.Key, r.RangeEnd = []byte(worldPrefix), []byte("n0")
	case 1:
		r.Key, r.RangeEnd = []byte(worldPrefix+"b"), []byte(worldPrefix+"e")
	}
	if w.oneOf(3) {
		r.Limit = w.rand.Int64N(4)
	}
	r.KeysOnly, r.CountOnly = w.oneOf(6), w.oneOf(6)
	if w.oneOf(5) {
		r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(w.rand.IntN(3)), pb.RangeRequest_SortTarget(w.rand.IntN(5))
	}
	if w.oneOf(8) {
		r.MinModRevision, r.MaxCreateRevision = w.rand.Int64N(w.newest()+1), w.rand.Int64N(w.newest()+1)
	}
	return r
}

func (w *world) read(request *pb.RangeRequest) Verdict {
	if !Cacheable(request) {
		w.t.Fatalf("not cacheable: %v", request)
	}
	r := &reading{conn: w.rand.IntN(len(w.conns)), serializable: request.Serializable, request: proto.Clone(request).(*pb.RangeRequest), began: w.now, after: w.newest()}
	r.Read = Read{Request: request, Seen: w.conns[r.conn], Done: func(a Answer, ok bool) {
		if r.over {
			w.t.Fatal("a read is done twice")
		}
		if r.over = true; ok {
			w.answered(r, a)
		} else {
			w.forwarded(r)
		}
	}}
	a, verdict := w.cache.Read(w.now, &r.Read)
	switch verdict {
	case Hit:
		r.over = true
		w.answered(r, a)
	case Miss:
		r.over = true
		w.forwarded(r)
	case Waits:
		w.waits++
		w.waiting = append(w.waiting, r)
	}
	return verdict
}

// forwarded is a read that the cluster answers: by the newest that there is, or what some member
// has.
func (w *world) forwarded(r *reading) {
	revision := w.newest()
	if r.serializable {
		revision = max(w.conns[r.conn], revision-w.rand.Int64N(4))
	}
	w.conns[r.conn] = max(w.conns[r.conn], revision)
}

// answered judges an answer from the cache.
func (w *world) answered(r *reading, a Answer) {
	w.t.Helper()
	w.hits++
	if a.Revision < r.Seen {
		w.t.Fatalf("an answer at revision %d to who has seen %d", a.Revision, r.Seen)
	}
	// The caller looks again, as another answer may have come in the meantime.
	w.conns[r.conn] = max(w.conns[r.conn], a.Revision)
	switch {
	case !r.serializable && a.Revision < r.after:
		w.t.Fatalf("a linearizable answer at revision %d to a read that came after %d", a.Revision, r.after)
	case !r.serializable && w.users && r.began > w.usersAt:
		w.t.Fatal("an answer, and there are users")
	case r.serializable:
		if w.users && w.now-w.usersAt > worldStaleness {
			w.t.Fatal("a serializable answer, and there have been users for long")
		}
		if a.Revision < w.newest() {
			w.stale++
		}
		if next := a.Revision; next < w.newest() && w.written[next] < w.now-worldStaleness {
			w.t.Fatalf("a serializable answer at revision %d at %v, and revision %d was there at %v", a.Revision, w.now, next+1, w.written[next])
		}
	}
	want, err := state.RangeResponse(context.Background(), moment{w.store[a.Revision-1], a.Revision}, r.request)
	if err != nil {
		w.t.Fatal(err)
	}
	want = proto.Clone(want).(*pb.RangeResponse)
	want.Header = w.header(a.Revision)
	for _, kv := range want.Kvs {
		kv.Key = kv.Key[len(worldPrefix):]
	}
	got := &pb.RangeResponse{}
	if err := proto.Unmarshal(append(slices.Clone(a.Head), a.Body...), got); err != nil {
		w.t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		w.t.Fatalf("%v at %d:\n%v\nwant\n%v", r.request, a.Revision, got, want)
	}
}

func (w *world) step() {
	w.now += time.Duration(w.rand.Int64N(int64(4 * time.Millisecond)))
	w.expire()
	switch w.rand.IntN(24) {
	case 0, 1:
		w.write()
	case 2, 3, 4, 5, 6, 7:
		w.read(w.newRequest())
	case 8, 9:
		w.cache.Tick(w.now)
	case 10:
		if w.oneOf(12) && w.compacted < w.newest() {
			w.compacted += 1 + w.rand.Int64N(w.newest()-w.compacted)
		}
	case 11:
		if w.oneOf(30) && w.up {
			w.disconnect()
		} else if !w.up && w.oneOf(4) {
			w.connect()
		}
	case 12:
		switch {
		case w.oneOf(40):
			w.now += time.Duration(w.rand.Int64N(int64(4 * time.Second)))
		case w.oneOf(40):
			w.now += time.Minute
		case w.oneOf(30):
			w.lonely = !w.lonely
		case w.oneOf(60):
			w.users, w.usersAt = !w.users, w.now
		}
	default:
		if w.up && w.oneOf(2) {
			w.serve()
		} else {
			w.hear()
		}
	}
	w.check()
}

// expire has reads that have waited for long go to the cluster.
func (w *world) expire() {
	w.waiting = slices.DeleteFunc(w.waiting, func(r *reading) bool {
		if !r.over && w.now-r.began > Patience && w.cache.Drop(&r.Read) {
			r.over = true
			w.forwarded(r)
		}
		return r.over
	})
}

// check holds what is counted to what is there.
func (w *world) check() {
	c := w.cache
	var values, bodies int64
	for i, a := range c.areas {
		sum, leased := int64(0), 0
		for _, kv := range a.kvs {
			if sum += sizeOf(kv); kv.Lease != 0 {
				leased++
			}
		}
		if a.Interval != i || a.gone || sum != a.bytes || leased != a.leased {
			w.t.Fatalf("area %q has %d bytes, counted %d; %d leased, counted %d", i, sum, a.bytes, leased, a.leased)
		}
		if (i.End != "") != slices.Contains(c.wide, a) {
			w.t.Fatalf("area %q and the wide ones", i)
		}
		values, bodies = values+a.bytes, bodies+a.bodyBytes
	}
	if values != c.valueBytes || bodies != c.bodyBytes || c.Bytes() > worldBytes {
		w.t.Fatalf("%d of values, counted %d; %d of answers, counted %d", values, c.valueBytes, bodies, c.bodyBytes)
	}
	for _, a := range c.byID {
		if a.gone || !a.created {
			w.t.Fatal("a watch of an area that is not there")
		}
	}
	if len(c.heat) > maxHeats+maxAreas || len(c.marks) > 2*marksCount+2 {
		w.t.Fatalf("%d heats, %d marks", len(c.heat), len(c.marks))
	}
}

// settle ends all faults: every read that waits ends, and reads of a hot range are answered here.
func (w *world) settle() {
	w.lonely, w.users, w.usersAt = false, false, w.now
	w.now += offFor + time.Minute
	w.small()
	w.cache.Tick(w.now)
	if !w.up {
		w.connect()
	}
	// A refusal that was on its way comes now, and nothing is tried for offFor then.
	end := w.now + offFor + time.Minute
	for count := 0; ; count++ {
		w.now += 2 * time.Millisecond
		if count%20 == 0 {
			w.expire()
			w.cache.Tick(w.now)
			if w.read(&pb.RangeRequest{Key: []byte(worldPrefix + "b"), RangeEnd: []byte(worldPrefix + "e"), Serializable: true}) == Hit {
				break
			}
		}
		if w.now > end {
			w.t.Fatalf("it does not settle: %d areas, %d waiting", len(w.cache.areas), len(w.waiting))
		}
		if w.oneOf(50) {
			w.small()
		}
		w.serve()
		w.hear()
		w.check()
	}
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rand: rand.New(rand.NewPCG(seed, 1)), conns: make([]int64, 3)}
	w.store, w.events, w.written = store{{}}, [][]*mvccpb.Event{nil}, []time.Duration{0}
	cfg := Config{Bytes: worldBytes, Staleness: worldStaleness, Prefix: worldPrefix}
	if w.oneOf(2) {
		cfg.Named = []Interval{{worldPrefix, "n0"}}
	}
	w.cache = New(cfg, w)
	w.connect()
	return w
}

// TestModel runs worlds of random reads, writes, compactions, users, members that are behind or
// have no leader, broken streams and errors: no answer is older than it may be, and each is the
// cluster's.
func TestModel(t *testing.T) {
	t.Parallel()
	hits, waits, stale := 0, 0, 0
	run := func(seed uint64) {
		w := newWorld(t, seed)
		defer func() {
			if t.Failed() {
				t.Logf("again: go test ./cli/proxy/cache -run TestModel -cache.seed %d", seed)
			}
		}()
		for range 4000 {
			w.step()
		}
		w.settle()
		hits, waits, stale = hits+w.hits, waits+w.waits, stale+w.stale
	}
	if *flagSeed != 0 {
		run(*flagSeed)
		return
	}
	for seed := uint64(1); seed <= *flagRuns; seed++ {
		run(seed)
	}
	if n := int(*flagRuns); hits < 100*n || waits < 50*n || stale < n {
		t.Errorf("%d answers, %d that waited, %d that were not the newest: the worlds try too little", hits, waits, stale)
	}
	t.Logf("%d answers, %d waited, %d not the newest", hits, waits, stale)
}
