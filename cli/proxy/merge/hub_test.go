package merge

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

var (
	flagSeed = flag.Uint64("merge.seed", 0, "run this world alone")
	flagRuns = flag.Uint64("merge.runs", 200, "how many worlds")
)

// A world is a model of a cluster with a Hub and clients before it. Everything happens in steps
// that a seed chooses.
type world struct {
	t    *testing.T
	rand *rand.Rand
	hub  *Hub

	// The cluster: events by revision, index 0 is revision 1.
	revisions [][]*mvccpb.Event
	compacted int64
	// The member that the hub is connected to, which may be behind, and what is on the way.
	up       bool
	applied  int64
	requests []*pb.WatchRequest
	watches  map[int64]*served
	wire     []*pb.WatchResponse

	clients []*outlet
}

// served is a watch at the member.
type served struct {
	key, end string
	next     int64
}

func (w *world) Send(r *pb.WatchRequest) { w.requests = append(w.requests, r) }

// An outlet is a client: what it was told, and its queue.
type outlet struct {
	world   *world
	client  *Client
	bound   int
	queue   int  // messages that are not read
	starved bool // it was full when something came
	asked   map[int64]*asked
	order   []*asked // creates that are not answered
	closed  bool
	ended   bool
}

// asked is what a client asked for, and has got.
type asked struct {
	id        int64 // 0: the proxy's choice
	create    *pb.WatchCreateRequest
	announced bool
	start     int64
	got       int // matching events
	canceled  bool
}

func (o *outlet) Full() bool {
	full := o.queue >= o.bound
	o.starved = o.starved || full
	return full
}

func (o *outlet) End(string) { o.ended = true }

func matches(c *pb.WatchCreateRequest, e *mvccpb.Event) bool {
	key := string(e.Kv.Key)
	if len(c.RangeEnd) == 0 && key != string(c.Key) || len(c.RangeEnd) > 0 && (key < string(c.Key) || key >= string(c.RangeEnd)) {
		return false
	}
	return !slices.Contains(c.Filters, pb.WatchCreateRequest_NOPUT) && e.Type == mvccpb.Event_PUT ||
		!slices.Contains(c.Filters, pb.WatchCreateRequest_NODELETE) && e.Type == mvccpb.Event_DELETE
}

// wanted are all events of a watch up to a revision.
func (w *world) wanted(a *asked, upTo int64) (events []*mvccpb.Event) {
	for rev := max(a.start, 1); rev <= min(upTo, int64(len(w.revisions))); rev++ {
		for _, e := range w.revisions[rev-1] {
			if matches(a.create, e) {
				events = append(events, e)
			}
		}
	}
	return events
}

// position is the first revision that a watch may lack.
func (w *world) position(a *asked) int64 {
	if a.got == 0 {
		return a.start
	}
	return w.wanted(a, int64(len(w.revisions)))[a.got-1].Kv.ModRevision + 1
}

func (o *outlet) Push(m Message) {
	w := o.world
	w.t.Helper()
	o.queue++
	r := m.Control
	if r == nil {
		r = &pb.WatchResponse{}
		if err := m.Frames(1<<30, func(head, body []byte) error { return proto.Unmarshal(append(slices.Clone(head), body...), r) }); err != nil {
			w.t.Fatal(err)
		}
	}
	if r.Created {
		if r.Canceled { // refused: of any that is not answered
			for i, c := range o.order {
				if c.create.StartRevision < 0 || c.create.WatchId != 0 && o.asked[c.create.WatchId] != nil && o.asked[c.create.WatchId] != c {
					o.order = slices.Delete(o.order, i, i+1)
					c.canceled = true
					return
				}
			}
			w.t.Fatalf("a watch is refused: %v", r)
		}
		i := slices.IndexFunc(o.order, func(c *asked) bool { return o.client.watches[r.WatchId] != nil && c.id == r.WatchId })
		if i < 0 {
			w.t.Fatalf("a watch was created that nobody asked for: %v", r)
		}
		a := o.order[i]
		o.order = slices.Delete(o.order, i, i+1)
		a.announced = true
		if a.start = a.create.StartRevision; a.start == 0 {
			a.start = r.Header.Revision + 1
		}
		return
	}
	if r.WatchId == noID {
		for _, a := range o.asked {
			if a.announced && !a.canceled {
				w.complete(a, r.Header.Revision, "a progress message for all")
			}
		}
		return
	}
	a := o.asked[r.WatchId]
	switch {
	case a == nil || !a.announced || a.canceled:
		w.t.Fatalf("a response for a watch that is not there: %v", r)
	case r.Canceled:
		if a.canceled = true; r.CompactRevision > 0 && w.position(a) > r.CompactRevision {
			w.t.Fatalf("a watch at %d is cancelled for a compaction at %d", w.position(a), r.CompactRevision)
		}
	case len(r.Events) == 0:
		w.complete(a, r.Header.Revision, "a progress message")
	default:
		want := w.wanted(a, int64(len(w.revisions)))[a.got:]
		for i, e := range r.Events {
			if i >= len(want) || !proto.Equal(e, want[i]) {
				w.t.Fatalf("watch %d has event %v at %d; %d were to come", r.WatchId, e, a.got+i, len(want))
			}
		}
		a.got += len(r.Events)
		// A revision is not split between responses.
		if rest := want[len(r.Events):]; len(rest) > 0 && rest[0].Kv.ModRevision == r.Events[len(r.Events)-1].Kv.ModRevision {
			w.t.Fatalf("revision %d comes in parts", rest[0].Kv.ModRevision)
		}
	}
}

func (w *world) complete(a *asked, upTo int64, what string) {
	if n := len(w.wanted(a, upTo)); a.got < n {
		w.t.Fatalf("%s says %d, and the client has %d events of %d", what, upTo, a.got, n)
	}
	if a.got > 0 && upTo+1 < w.position(a) {
		w.t.Fatalf("%s says %d, and the client is at %d: it would get events again", what, upTo, w.position(a))
	}
}

func (w *world) oneOf(n int) bool { return w.rand.IntN(n) == 0 }

func (w *world) key() string { return string(rune('a' + w.rand.IntN(3))) }

func (w *world) write() {
	rev := int64(len(w.revisions) + 1)
	var events []*mvccpb.Event
	for _, key := range []string{"a", "b", "c"} {
		if len(events) > 0 && !w.oneOf(3) || len(events) == 0 && key != "c" && !w.oneOf(2) {
			continue
		}
		e := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev, Value: []byte(fmt.Sprint(rev))}}
		if w.oneOf(3) {
			e.Type = mvccpb.Event_DELETE
		}
		events = append(events, e)
	}
	w.revisions = append(w.revisions, events)
}

// serve has the member do something for the stream.
func (w *world) serve() {
	header := func(rev int64) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: rev} }
	switch {
	case w.applied < int64(len(w.revisions)) && w.oneOf(2):
		w.applied++
	case len(w.requests) > 0 && w.oneOf(2):
		r := w.requests[0]
		w.requests = w.requests[1:]
		switch {
		case r.GetCreateRequest() != nil:
			c := r.GetCreateRequest()
			if c.StartRevision < 0 {
				w.wire = append(w.wire, &pb.WatchResponse{Header: header(w.applied), WatchId: noID, Created: true, Canceled: true, CancelReason: "negative"})
				return
			}
			// As etcd, which sends what it says of requests by another queue than the rest, so this may
			// overtake a progress message that was made before.
			at := len(w.wire)
			for at > 0 && !w.wire[at-1].Created && !w.wire[at-1].Canceled && w.oneOf(2) {
				at--
			}
			w.wire = slices.Insert(w.wire, at, &pb.WatchResponse{Header: header(w.applied), WatchId: c.WatchId, Created: true})
			s := &served{key: string(c.Key), end: string(c.RangeEnd), next: c.StartRevision}
			if s.next == 0 {
				s.next = w.applied + 1
			}
			w.watches[c.WatchId] = s
		case r.GetCancelRequest() != nil:
			id := r.GetCancelRequest().WatchId
			if w.watches[id] != nil {
				delete(w.watches, id)
				w.wire = append(w.wire, &pb.WatchResponse{Header: header(w.applied), WatchId: id, Canceled: true})
			}
		default:
			for _, s := range w.watches {
				if s.next <= w.applied {
					return // as etcd: no answer while one is behind
				}
			}
			w.wire = append(w.wire, &pb.WatchResponse{Header: header(w.applied), WatchId: noID})
		}
	case len(w.watches) > 0:
		ids := slices.Sorted(maps.Keys(w.watches))
		id := ids[w.rand.IntN(len(ids))]
		s := w.watches[id]
		if s.next < w.compacted && s.next <= w.applied && w.compacted <= w.applied {
			delete(w.watches, id)
			w.wire = append(w.wire, &pb.WatchResponse{Header: header(w.applied), WatchId: id, Canceled: true, CompactRevision: w.compacted})
			return
		}
		if s.next > w.applied {
			if w.oneOf(4) {
				w.wire = append(w.wire, &pb.WatchResponse{Header: header(w.applied), WatchId: id})
			}
			return
		}
		all := &pb.WatchCreateRequest{Key: []byte(s.key), RangeEnd: []byte(s.end)}
		var events []*mvccpb.Event
		last, limit := int64(0), 1+w.rand.IntN(3)
		for ; s.next <= w.applied && limit > 0; s.next++ {
			for _, e := range w.revisions[s.next-1] {
				if matches(all, e) {
					events = append(events, e)
					if last != s.next {
						last, limit = s.next, limit-1
					}
				}
			}
		}
		if len(events) > 0 {
			rev := w.applied
			if w.oneOf(2) {
				rev = last
			}
			w.wire = append(w.wire, &pb.WatchResponse{Header: header(rev), WatchId: id, Events: events})
		}
	}
}

func (w *world) connect() {
	w.up, w.requests, w.wire, w.watches = true, nil, nil, make(map[int64]*served)
	w.applied = max(0, int64(len(w.revisions)-w.rand.IntN(6))) // another member, perhaps behind
	w.hub.Up()
}

func (w *world) newClient() {
	o := &outlet{world: w, bound: 1 + w.rand.IntN(6), asked: make(map[int64]*asked)}
	o.client = w.hub.NewClient(o)
	w.clients = append(w.clients, o)
}

func (w *world) someClient() *outlet {
	o := w.clients[w.rand.IntN(len(w.clients))]
	if o.closed {
		return nil
	}
	return o
}

func (w *world) create(o *outlet) {
	c := &pb.WatchCreateRequest{Key: []byte(w.key()), ProgressNotify: w.oneOf(2), Fragment: w.oneOf(3)}
	if w.oneOf(4) {
		c.Key, c.RangeEnd = []byte("a"), []byte("c")
	}
	switch w.rand.IntN(4) {
	case 0:
		c.StartRevision = 1 + w.rand.Int64N(int64(len(w.revisions)+3))
	case 1:
		c.StartRevision = int64(len(w.revisions) + 1)
	}
	if w.oneOf(5) {
		c.Filters = append(c.Filters, pb.WatchCreateRequest_NODELETE)
	}
	if w.oneOf(40) {
		c.StartRevision = -1
	}
	if w.oneOf(5) {
		c.WatchId = 1 + w.rand.Int64N(3)
	}
	a := &asked{create: c}
	o.order = append(o.order, a)
	if _, taken := o.client.watches[c.WatchId]; !taken || c.WatchId == 0 {
		before := maps.Clone(o.client.watches)
		w.hub.Request(o.client, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: c}})
		for id := range o.client.watches {
			if before[id] == nil {
				a.id, o.asked[id] = id, a
			}
		}
		return
	}
	w.hub.Request(o.client, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: c}})
}

func (w *world) step() {
	switch w.rand.IntN(16) {
	case 0, 1:
		w.write()
	case 2:
		if o := w.someClient(); o != nil && len(o.client.watches) < 6 {
			w.create(o)
		}
	case 3:
		if o := w.someClient(); o != nil && len(o.client.watches) > 0 && w.oneOf(2) {
			ids := slices.Sorted(maps.Keys(o.client.watches))
			w.hub.Request(o.client, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: ids[w.rand.IntN(len(ids))]}}})
		}
	case 4:
		if o := w.someClient(); o != nil {
			w.hub.Request(o.client, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
		}
	case 5:
		w.hub.Tick(1)
	case 6:
		if w.oneOf(10) {
			if w.compacted < int64(len(w.revisions)) {
				w.compacted += 1 + w.rand.Int64N(int64(len(w.revisions))-w.compacted)
			}
		}
	case 7:
		if w.oneOf(8) && w.up {
			w.up = false
			w.hub.Down()
		} else if !w.up {
			w.connect()
		}
	case 8:
		if o := w.someClient(); o != nil && w.oneOf(10) {
			o.closed = true
			w.hub.Close(o.client)
			w.newClient()
		}
	case 9, 10:
		if o := w.someClient(); o != nil {
			w.read(o, w.rand.IntN(o.queue+1))
		}
	default:
		if w.up {
			if len(w.wire) > 0 && w.oneOf(2) {
				w.respond()
			} else {
				w.serve()
			}
		}
	}
}

func (w *world) read(o *outlet, count int) {
	o.queue -= count
	if o.starved && o.queue < o.bound {
		o.starved = false
		w.hub.Drained(o.client)
	}
}

func (w *world) respond() {
	r := w.wire[0]
	w.wire = w.wire[1:]
	if err := w.hub.Response(proto.Clone(r).(*pb.WatchResponse)); err != nil {
		w.t.Fatal(err)
	}
}

// check holds the invariants of the package.
func (w *world) check() {
	h := w.hub
	followers := 0
	for key, g := range h.groups {
		followers += len(g.followers)
		for _, s := range append([]*source{g.lead}, g.followers...) {
			if s.key != key || s.gone || !h.sources[s] {
				w.t.Fatalf("a group of %v has a source that is not there", key)
			}
		}
	}
	if followers != h.followers {
		w.t.Fatalf("%d followers, counted %d", followers, h.followers)
	}
	for s := range h.sources {
		if len(s.watches) == 0 || s.gone || s.quiet > s.next {
			w.t.Fatalf("a source without watches, or quiet %d above next %d", s.quiet, s.next)
		}
		if s.created && h.byID[s.id] != s {
			w.t.Fatal("a source is not known by its id")
		}
		for i, x := range s.watches {
			if x.source != s || x.at != i || x.key != s.key || x.client.watches[x.id] != x {
				w.t.Fatal("a watch does not know its source")
			}
		}
	}
	watches := 0
	for c := range h.clients {
		watches += len(c.watches)
		for _, x := range c.watches {
			parked := slices.Contains(c.parked, x)
			if parked == (x.source != nil) {
				w.t.Fatal("a watch is parked and has a source, or neither")
			}
		}
	}
	if watches != h.Watches() {
		w.t.Fatalf("%d watches, counted %d", watches, h.Watches())
	}
}

// settle ends all faults, and everything that is to come comes.
func (w *world) settle() {
	if !w.up {
		w.connect()
	}
	for range 4 { // watches may begin that far ahead
		w.write()
	}
	for range 3000 {
		w.applied = int64(len(w.revisions))
		for len(w.wire) > 0 {
			w.respond()
		}
		for range 8 {
			w.serve()
		}
		w.hub.Tick(1)
		for _, o := range w.clients {
			if !o.closed {
				w.read(o, o.queue)
			}
		}
		w.check()
		if w.settled() {
			return
		}
	}
	for _, o := range w.clients {
		for id, a := range o.asked {
			if !o.closed && a.announced && !a.canceled {
				w.complete(a, int64(len(w.revisions)), fmt.Sprintf("the end of watch %d", id))
			}
		}
	}
	w.t.Fatalf("it does not settle: %d sources, %d watches, %d followers, wanting %d", w.hub.Sources(), w.hub.Watches(), w.hub.followers, len(w.hub.wanting))
}

func (w *world) settled() bool {
	ranges := make(map[rangeKey]bool)
	for _, o := range w.clients {
		if o.closed {
			continue
		}
		for id, x := range o.client.watches {
			ranges[x.key] = true
			a := o.asked[id]
			if !a.announced || a.got < len(w.wanted(a, int64(len(w.revisions)))) {
				return false
			}
		}
	}
	return w.hub.Sources() == len(ranges) && len(w.hub.wanting) == 0 && len(w.requests) == 0 && len(w.wire) == 0
}

// TestModel runs worlds of random clients, events, compactions, slow readers and broken
// connections: no client loses, doubles or reorders an event, progress messages say the truth, and
// when all is quiet there is one source for each range.
func TestModel(t *testing.T) {
	t.Parallel()
	run := func(seed uint64) {
		w := &world{t: t, rand: rand.New(rand.NewPCG(seed, 1)), watches: make(map[int64]*served)}
		defer func() {
			if t.Failed() {
				t.Logf("again: go test ./cli/proxy/merge -run TestModel -merge.seed %d", seed)
			}
		}()
		w.hub = New(w)
		for range 4 {
			w.newClient()
		}
		for range 600 {
			w.step()
			w.check()
		}
		w.settle()
	}
	if *flagSeed != 0 {
		run(*flagSeed)
		return
	}
	for seed := uint64(1); seed <= *flagRuns; seed++ {
		run(seed)
	}
}

// TestFrames splits messages where they may be.
// talk is a cluster that is only written down, and a client that is.
type talk struct {
	sent []*pb.WatchRequest
	got  []*pb.WatchResponse
}

func (s *talk) Send(r *pb.WatchRequest) { s.sent = append(s.sent, r) }
func (s *talk) Push(m Message)          { s.got = append(s.got, m.Control) }
func (s *talk) Full() bool              { return false }
func (s *talk) End(string)              {}

// TestProgressWithoutWatches: a member answers no progress to a stream without watches, nor does the
// hub, which does not ask the cluster again and again for the sake of one.
func TestProgressWithoutWatches(t *testing.T) {
	s := &talk{}
	h := New(s)
	h.Up()
	c := h.NewClient(s)
	progress := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	h.Request(c, progress)
	if h.Restless() || len(s.sent) != 0 {
		t.Fatalf("restless: %v, asked %v", h.Restless(), s.sent)
	}
	h.Request(c, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}})
	h.Request(c, progress)
	if !h.Restless() {
		t.Fatal("progress of a watch is not waited for")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(h.Response(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: 5}, WatchId: s.sent[0].GetCreateRequest().WatchId, Created: true}))
	h.Request(c, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{}}})
	if h.Restless() {
		t.Fatal("progress is waited for after the last watch has ended")
	}
	must(h.Response(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: 5}, WatchId: noID}))
	if len(s.got) != 2 || !s.got[0].Created || !s.got[1].Canceled {
		t.Fatalf("the client got %v", s.got)
	}
}

func TestFrames(t *testing.T) {
	t.Parallel()
	var events []*mvccpb.Event
	for i := range 10 {
		events = append(events, &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("k"), Value: []byte(strings.Repeat("v", 100)), ModRevision: int64(i)}})
	}
	b, err := newBatch(events)
	if err != nil {
		t.Fatal(err)
	}
	header, err := proto.Marshal(&pb.ResponseHeader{Revision: 7})
	if err != nil {
		t.Fatal(err)
	}
	for _, fragment := range []bool{false, true} {
		m := Message{WatchID: 3, Header: header, Batch: b, Fragment: fragment}
		var got []*mvccpb.Event
		var parts []bool
		err := m.Frames(400, func(head, body []byte) error {
			r := &pb.WatchResponse{}
			if err := proto.Unmarshal(append(slices.Clone(head), body...), r); err != nil {
				return err
			}
			if r.WatchId != 3 || r.Header.Revision != 7 || fragment && len(head)+len(body) > 400 {
				t.Errorf("a part of %d bytes: %v", len(head)+len(body), r)
			}
			got, parts = append(got, r.Events...), append(parts, r.Fragment)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(events) || fragment != (len(parts) > 1) || parts[len(parts)-1] {
			t.Errorf("%d events in parts %v", len(got), parts)
		}
		for i, e := range got {
			if !proto.Equal(e, events[i]) {
				t.Errorf("event %d is %v", i, e)
			}
		}
	}
}
