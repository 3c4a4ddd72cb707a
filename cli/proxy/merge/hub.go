package merge

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// An Env is the connection to the cluster.
type Env interface {
	// Send queues a request for the Watch stream that is up. It does not block.
	Send(*pb.WatchRequest)
}

// A rangeKey is what sources share: watches with another one never meet.
type rangeKey struct {
	key, end string
	prevKV   bool
}

// A source is one watch of the cluster.
type source struct {
	key     rangeKey
	order   int64 // of their making
	watches []*watch
	// id is that of the present stream, once asked.
	id    int64
	asked bool
	// created: the cluster has said so, on this stream.
	created bool
	// A progress message is about this source if it is above createdAt, or if none is due any more
	// that was asked for before the source was created (doubt).
	createdAt int64
	doubt     int
	// start is what to ask for as long as next is not known.
	start       int64
	next, quiet int64 // see the package; next is 0 until it is created the first time
	// synced: it was seen not to be behind, on this stream. It may be wrong without harm: it says who
	// waits for whom.
	synced bool
	gone   bool
}

// A group is the sources of one range.
type group struct {
	lead      *source
	followers []*source
}

// A Hub is all watches of one caller.
type Hub struct {
	env     Env
	up      bool
	clients map[*Client]bool
	sources map[*source]bool
	groups  map[rangeKey]*group
	// pending are the sources that the cluster was asked to create, in this order, which is that of
	// its answers.
	pending []*source
	byID    map[int64]*source
	nextID  int64
	made    int64
	header  *pb.ResponseHeader // the newest one
	// wanting are clients that asked for progress and have watches. However often one asked, it gets
	// one answer.
	wanting map[*Client]bool
	// sinceAsked counts the ticks since the cluster was asked for progress; answered: it has answered
	// since. owed are all questions without an answer: it answers none while a source is behind.
	sinceAsked int
	answered   bool
	owed       int
	// followers are how many sources wait for a lead.
	followers int

	watches int // of all clients

	// Shared counts events that went to other watches than a source's first, Parked the watches that
	// had to wait for their client.
	Shared, Parked int64
}

// New makes a Hub without a connection: see Up.
func New(env Env) *Hub {
	return &Hub{
		env: env, clients: make(map[*Client]bool), sources: make(map[*source]bool), groups: make(map[rangeKey]*group),
		byID: make(map[int64]*source), wanting: make(map[*Client]bool), answered: true,
	}
}

// Clients is how many there are.
func (h *Hub) Clients() int { return len(h.clients) }

// Sources is how many watches of the cluster there are.
func (h *Hub) Sources() int { return len(h.sources) }

// Watches is how many the clients have.
func (h *Hub) Watches() int { return h.watches }

// begin gives a watch a source of its own.
func (h *Hub) begin(w *watch, start int64) {
	h.made++
	s := &source{key: w.key, order: h.made, start: start}
	h.sources[s] = true
	h.attach(w, s)
	h.open(s)
}

func (h *Hub) attach(w *watch, s *source) {
	w.source, w.at = s, len(s.watches)
	s.watches = append(s.watches, w)
}

// detach takes a watch from its source, which ends without any.
func (h *Hub) detach(w *watch) {
	s := w.source
	if s == nil {
		return
	}
	last := len(s.watches) - 1
	s.watches[w.at] = s.watches[last]
	s.watches[w.at].at = w.at
	s.watches[last] = nil
	s.watches, w.source = s.watches[:last], nil
	if last == 0 {
		h.end(s)
	}
}

// open asks the cluster for a source, or leaves that to Up.
func (h *Hub) open(s *source) {
	if !h.up {
		return
	}
	h.nextID++
	s.id, s.asked = h.nextID, true
	h.pending = append(h.pending, s)
	start := s.start
	if s.next > 0 {
		start = s.next
	}
	h.env.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(s.key.key), RangeEnd: []byte(s.key.end), PrevKv: s.key.prevKV,
		StartRevision: start, WatchId: s.id, ProgressNotify: true,
	}}})
}

// end cancels a source. One that was asked for and not answered is cancelled when it is.
func (h *Hub) end(s *source) {
	if s.gone {
		return
	}
	s.gone = true
	delete(h.sources, s)
	h.leave(s)
	if s.created {
		h.sendCancel(s)
	}
}

func (h *Hub) sendCancel(s *source) {
	delete(h.byID, s.id)
	h.env.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: s.id}}})
}

// leave takes a source from its group; one that led is followed by the one that has come farthest.
func (h *Hub) leave(s *source) {
	g := h.groups[s.key]
	if g == nil {
		return
	}
	if i := slices.Index(g.followers, s); i >= 0 {
		g.followers = slices.Delete(g.followers, i, i+1)
		h.followers--
		return
	}
	if g.lead != s {
		return
	}
	if len(g.followers) == 0 {
		delete(h.groups, s.key)
		return
	}
	g.lead = slices.MaxFunc(g.followers, func(a, b *source) int { return cmp.Compare(a.next, b.next) })
	g.followers = slices.DeleteFunc(g.followers, func(f *source) bool { return f == g.lead })
	h.followers--
	h.gather(g)
}

// place puts a source where it belongs in its group.
func (h *Hub) place(s *source) {
	g := h.groups[s.key]
	switch {
	case g == nil:
		h.groups[s.key] = &group{lead: s}
		return
	case g.lead == s:
	case s.synced && !g.lead.synced:
		if i := slices.Index(g.followers, s); i >= 0 {
			g.followers[i] = g.lead
		} else {
			g.followers = append(g.followers, g.lead)
			h.followers++
		}
		g.lead = s
	case !slices.Contains(g.followers, s):
		g.followers = append(g.followers, s)
		h.followers++
	}
	h.gather(g)
}

// gather has the watches of followers that have caught up move to the lead.
func (h *Hub) gather(g *group) {
	if !g.lead.created || !g.lead.synced {
		return
	}
	for _, f := range slices.Clone(g.followers) {
		if !f.created || g.lead.quiet > f.next {
			continue
		}
		for len(f.watches) > 0 {
			w := f.watches[len(f.watches)-1]
			w.min = max(w.min, f.next)
			h.move(w, g.lead)
		}
	}
}

func (h *Hub) move(w *watch, to *source) {
	h.detach(w)
	h.attach(w, to)
}

// Down notes that the stream to the cluster has ended.
func (h *Hub) Down() {
	h.up, h.pending, h.answered, h.owed = false, nil, true, 0
	clear(h.byID)
	for s := range h.sources {
		s.asked, s.created, s.synced = false, false, false
	}
}

// Up notes that there is a new stream, and asks for all sources again.
func (h *Hub) Up() {
	h.up, h.nextID = true, 0
	for _, s := range slices.SortedFunc(maps.Keys(h.sources), func(a, b *source) int { return cmp.Compare(a.order, b.order) }) {
		h.open(s)
	}
}

var (
	errNotAsked = errors.New("merge: the cluster has created a watch that was not asked for")
	errOrder    = errors.New("merge: the cluster has created watches in another order")
)

// Response handles a response of the cluster. After an error the stream is of no use any more.
func (h *Hub) Response(r *pb.WatchResponse) error {
	if r.Header != nil && (h.header == nil || r.Header.Revision >= h.header.Revision) {
		h.header = r.Header
	}
	if r.Created {
		return h.created(r)
	}
	if r.WatchId == noID && !r.Canceled && len(r.Events) == 0 {
		h.progress(r)
		return nil
	}
	s := h.byID[r.WatchId]
	switch {
	case s == nil: // cancelled since
	case r.Canceled:
		s.created = false // it needs no cancelling
		delete(h.byID, s.id)
		h.lost(s, r)
	case len(r.Events) == 0:
		revision := r.Header.GetRevision()
		if h.caughtUp(s, revision); s.next > revision+1 {
			break // of a member that is behind another one
		}
		for _, w := range s.watches {
			if w.progress && w.min <= revision+1 {
				w.client.out.Push(Message{Control: &pb.WatchResponse{Header: r.Header, WatchId: w.id}})
			}
		}
	default:
		return h.events(s, r)
	}
	return nil
}

func (h *Hub) created(r *pb.WatchResponse) error {
	if len(h.pending) == 0 {
		return errNotAsked
	}
	s := h.pending[0]
	h.pending = h.pending[1:]
	switch {
	case r.Canceled && s.gone:
		return nil
	case r.Canceled:
		h.lost(s, r)
		return nil
	case r.WatchId != s.id:
		return errOrder
	case s.gone:
		h.sendCancel(s)
		return nil
	}
	h.byID[s.id] = s
	s.created = true
	revision := r.Header.GetRevision()
	s.createdAt, s.doubt = revision, h.owed
	if s.next == 0 {
		if s.next = s.start; s.start == 0 {
			s.next = revision + 1
		}
		s.quiet = s.next
	}
	s.synced = s.next > revision
	for i := len(s.watches) - 1; i >= 0; i-- { // from the end: cancel takes them out
		w := s.watches[i]
		w.min = max(w.min, s.next)
		if !w.announced {
			w.announced = true
			w.client.out.Push(Message{Control: &pb.WatchResponse{Header: r.Header, WatchId: w.id, Created: true}})
			if w.cancelled {
				h.cancel(w)
			}
		}
	}
	if !s.gone {
		h.place(s)
	}
	return nil
}

// lost handles a source that the cluster has cancelled, or refused.
func (h *Hub) lost(s *source, r *pb.WatchResponse) {
	for len(s.watches) > 0 {
		w := s.watches[len(s.watches)-1]
		switch {
		case !w.announced:
			h.drop(w)
			w.client.out.Push(Message{Control: r})
		case r.CompactRevision > 0 && w.min > r.CompactRevision:
			// The source was behind what its watch needs.
			h.detach(w)
			h.begin(w, w.min)
		case r.Created && r.CompactRevision == 0:
			// It was good before: who the caller is does not hold any more. It says so anew.
			h.drop(w)
			w.client.out.End(r.CancelReason)
		default:
			h.drop(w)
			w.client.out.Push(Message{Control: &pb.WatchResponse{
				Header: r.Header, WatchId: w.id, Canceled: true, CancelReason: r.CancelReason, CompactRevision: r.CompactRevision,
			}})
		}
	}
}

// events handles events of a source.
func (h *Hub) events(s *source, r *pb.WatchResponse) error {
	for len(r.Events) > 0 && r.Events[0].Kv.ModRevision < s.next {
		r.Events = r.Events[1:] // the cluster repeats itself; not seen, and not relied on
	}
	if len(r.Events) == 0 {
		return nil
	}
	b := &batches{response: r, made: make(map[[2]bool]*Batch)}
	count := len(s.watches)
	for i := count - 1; i >= 0; i-- { // from the end: park takes them out
		h.deliver(s.watches[i], r, b)
	}
	if b.failed != nil {
		return b.failed
	}
	h.Shared += int64(max(count-1, 0)) * int64(len(r.Events))
	last := r.Events[len(r.Events)-1].Kv.ModRevision
	s.next, s.quiet = last+1, last+1
	if s.gone {
		return nil
	}
	wasSynced := s.synced
	s.synced = s.synced || r.Header.GetRevision() == last
	if g := h.groups[s.key]; len(g.followers) > 0 {
		if !wasSynced && s.synced {
			h.place(s)
		} else {
			h.gather(g)
		}
	}
	return nil
}

// park takes a watch from its source, whose next has not moved yet.
func (h *Hub) park(w *watch) {
	w.min = max(w.min, w.source.next)
	h.detach(w)
	w.client.parked = append(w.client.parked, w)
	h.Parked++
}

// caughtUp notes that a source has everything up to a revision.
func (h *Hub) caughtUp(s *source, revision int64) {
	s.next = max(s.next, revision+1)
	if !s.synced {
		s.synced = true
		h.place(s)
	} else if g := h.groups[s.key]; len(g.followers) > 0 {
		h.gather(g)
	}
}

// heldFor reports whether a progress message was made when the source was there.
func (s *source) heldFor(revision int64) bool { return s.doubt == 0 || revision > s.createdAt }

// progress handles the cluster's word that all sources have everything up to a revision.
func (h *Hub) progress(r *pb.WatchResponse) {
	h.answered, h.owed = true, max(h.owed-1, 0)
	revision := r.Header.GetRevision()
	for _, s := range slices.SortedFunc(maps.Values(h.byID), func(a, b *source) int { return cmp.Compare(a.order, b.order) }) {
		if !s.gone && s.heldFor(revision) {
			h.caughtUp(s, revision)
		}
	}
	for c := range h.wanting {
		if c.settled(revision) {
			delete(h.wanting, c)
			c.out.Push(Message{Control: &pb.WatchResponse{Header: r.Header, WatchId: noID}})
		}
	}
	for _, s := range h.byID {
		s.doubt = max(s.doubt-1, 0)
	}
}

const (
	// askAgain is after how many TickIntervals the cluster is asked for progress again when it has not
	// answered: it answers nothing while a source is behind. askAlways is after how many it is asked
	// in any case, so that a source without events is created again near the present.
	askAgain  = 5
	askAlways = 100
)

// ask asks the cluster for progress, unless it is asked.
func (h *Hub) ask() {
	if !h.up || !h.answered && h.sinceAsked < askAgain {
		return
	}
	h.answered, h.sinceAsked = false, 0
	h.owed++
	h.env.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

// Tick is to be called at least every AtRest, and every TickInterval while the Hub is Restless;
// ticks is how many TickIntervals have passed since the last time.
func (h *Hub) Tick(ticks int) {
	h.sinceAsked += ticks
	if h.Restless() || h.sinceAsked >= askAlways && len(h.sources) > 0 {
		h.ask()
	}
}

// Restless reports that something waits for the cluster's word.
func (h *Hub) Restless() bool { return len(h.wanting) > 0 || h.followers > 0 }

// The times between calls of Tick.
const (
	TickInterval = 100 * time.Millisecond
	AtRest       = 10 * time.Second
)
