package transport

import (
	"container/heap"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// Link is the quality of one direction between two members. The zero Link is perfect.
type Link struct {
	Loss           float64       // share of messages lost, 0..1
	Delay          time.Duration // one way
	Jitter         time.Duration // added to Delay, uniformly from [0, Jitter)
	Reorder        bool          // jitter may overtake: delivery by due time, not by order of sending
	BytesPerSecond int64         // bandwidth of each of the two streams; 0: unlimited
	Cut            bool          // nothing passes; the sender learns that the peer is unreachable
}

// Memory is a network inside one process. Messages are copied through their encoding, so members
// share no memory; it uses nothing but time and channels, so it runs inside a synctest bubble.
// Every direction between two members has a random source of its own, made from the seed: what
// happens to the n-th message from A to B does not depend on what others send.
//
// All methods may be called from any goroutine.
type Memory struct {
	seed   uint64
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	def       Link
	links     map[direction]Link
	lanes     map[laneID]*lane
	endpoints map[uint64]*Endpoint
	upSince   map[direction]time.Time // when a direction was last mended
}

type direction struct{ from, to uint64 }

type laneID struct {
	direction
	bulk bool
}

// NewMemory makes a network whose every random decision follows from seed.
func NewMemory(seed int64) *Memory {
	n := &Memory{
		seed:      uint64(seed),
		links:     map[direction]Link{},
		lanes:     map[laneID]*lane{},
		endpoints: map[uint64]*Endpoint{},
		upSince:   map[direction]time.Time{},
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// Close ends the network's goroutines and those of its endpoints, and waits for them.
func (n *Memory) Close() {
	n.cancel()
	n.wg.Wait()
}

// Join gives a member an endpoint. A restarted member joins again: its new endpoint takes the place
// of the old one, which is stopped.
func (n *Memory) Join(id uint64, h Handler, src SnapshotSource) *Endpoint {
	e := &Endpoint{n: n, id: id, h: h, src: src, peers: map[uint64]time.Time{}, sending: map[uint64]bool{}, joined: time.Now(), reports: newReporter(h)}
	e.ctx, e.cancel = context.WithCancel(n.ctx)
	n.mu.Lock()
	old := n.endpoints[id]
	n.endpoints[id] = e
	n.mu.Unlock()
	if old != nil {
		old.Stop()
	}
	n.wg.Go(func() { e.reports.run(e.ctx) })
	return e
}

// SetDefault sets the quality of all directions that have none of their own.
func (n *Memory) SetDefault(l Link) {
	n.change(func() { n.def = l })
}

// SetLink sets the quality of one direction.
func (n *Memory) SetLink(from, to uint64, l Link) {
	n.change(func() { n.links[direction{from, to}] = l })
}

// Cut ends one direction and keeps the rest of its quality for Mend.
func (n *Memory) Cut(from, to uint64) { n.setCut(true, direction{from, to}) }

// Mend undoes Cut.
func (n *Memory) Mend(from, to uint64) { n.setCut(false, direction{from, to}) }

// Isolate cuts a member from all others, both ways.
func (n *Memory) Isolate(id uint64) {
	n.setCut(true, n.directions(func(a, b uint64) bool { return a == id || b == id })...)
}

// Partition cuts all directions between members of different groups, and mends those inside a
// group. A member in no group is a group of its own.
func (n *Memory) Partition(groups ...[]uint64) {
	group := map[uint64]int{}
	for i, g := range groups {
		for _, id := range g {
			group[id] = i + 1
		}
	}
	apart := func(a, b uint64) bool { return group[a] != group[b] || group[a] == 0 }
	n.setCut(true, n.directions(apart)...)
	n.setCut(false, n.directions(func(a, b uint64) bool { return !apart(a, b) })...)
}

// Heal mends everything that was cut. Loss and delay stay as they are.
func (n *Memory) Heal() {
	n.setCut(false, n.directions(func(a, b uint64) bool { return true })...)
}

func (n *Memory) directions(keep func(a, b uint64) bool) (all []direction) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for a := range n.endpoints {
		for b := range n.endpoints {
			if a != b && keep(a, b) {
				all = append(all, direction{a, b})
			}
		}
	}
	return all
}

func (n *Memory) setCut(cut bool, directions ...direction) {
	n.change(func() {
		for _, d := range directions {
			l := n.link(d)
			if l.Cut != cut {
				l.Cut = cut
				n.links[d] = l
			}
		}
	})
}

// change changes links, and records which directions it mended.
func (n *Memory) change(fn func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	cut := map[direction]bool{}
	for d, l := range n.links {
		cut[d] = l.Cut
	}
	defCut := n.def.Cut
	fn()
	for d, l := range n.links {
		was, known := cut[d]
		if !known {
			was = defCut
		}
		if was && !l.Cut {
			n.upSince[d] = time.Now()
		}
	}
}

// link is the quality of d now. REQUIRES: n.mu.
func (n *Memory) link(d direction) Link {
	if l, ok := n.links[d]; ok {
		return l
	}
	return n.def
}

func (n *Memory) linkNow(d direction) Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.link(d)
}

// reach is the endpoint that d leads to; nil if nothing gets there now.
func (n *Memory) reach(d direction) *Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.endpoints[d.to]
	if e == nil || e.ctx.Err() != nil || n.link(d).Cut {
		return nil
	}
	return e
}

const (
	memoryQueueMessages = 4096
	memoryQueueBytes    = 64 << 20
)

// A lane is one stream of one direction: like the real transport, a large append delays no
// heartbeat.
type lane struct {
	n    *Memory
	d    direction
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	rnd   *rand.Rand
	queue parcels
	bytes int
	count uint64
	last  time.Time // due time of the latest parcel: without Reorder none overtakes it
	busy  time.Time // until when the bandwidth is used up
}

type parcel struct {
	due   time.Time
	order uint64
	data  []byte
}

type parcels []parcel

func (q parcels) Len() int      { return len(q) }
func (q parcels) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q parcels) Less(i, j int) bool {
	if !q[i].due.Equal(q[j].due) {
		return q[i].due.Before(q[j].due)
	}
	return q[i].order < q[j].order
}
func (q *parcels) Push(x any) { *q = append(*q, x.(parcel)) }
func (q *parcels) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	(*q)[last] = parcel{}
	*q = (*q)[:last]
	return p
}

// lane returns the lane of id, and starts it at first use.
func (n *Memory) lane(id laneID) *lane {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.lanes[id]
	if l == nil {
		class := uint64(1)
		if id.bulk {
			class = 2
		}
		l = &lane{n: n, d: id.direction, wake: make(chan struct{}, 1), rnd: rand.New(rand.NewPCG(n.seed, mix(id.from)^mix(id.to*3)^mix(class)))}
		n.lanes[id] = l
		if n.ctx.Err() == nil {
			n.wg.Go(l.run)
		}
	}
	return l
}

// mix spreads the bits of x (the finisher of splitmix64), so that small ids give unlike seeds.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// put queues data; false if the queue is full.
func (l *lane) put(link Link, data []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Always the same number of draws for each message, so that a change of link changes only
	// itself.
	loss, jitter := l.rnd.Float64(), l.rnd.Float64()
	if loss < link.Loss {
		return true
	}
	if len(l.queue) >= memoryQueueMessages || (l.bytes > 0 && l.bytes+len(data) > memoryQueueBytes) {
		return false
	}
	start := time.Now()
	if link.BytesPerSecond > 0 {
		if l.busy.After(start) {
			start = l.busy
		}
		start = start.Add(time.Duration(float64(len(data)) / float64(link.BytesPerSecond) * float64(time.Second)))
		l.busy = start
	}
	due := start.Add(link.Delay + time.Duration(jitter*float64(link.Jitter)))
	if !link.Reorder && due.Before(l.last) {
		due = l.last
	}
	if due.After(l.last) {
		l.last = due
	}
	l.count++
	l.bytes += len(data)
	heap.Push(&l.queue, parcel{due: due, order: l.count, data: data})
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// next pops the first parcel that is due, or returns how long until one is; -1: none waits.
func (l *lane) next() (data []byte, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil, -1
	}
	if wait := time.Until(l.queue[0].due); wait > 0 {
		return nil, wait
	}
	p := heap.Pop(&l.queue).(parcel)
	l.bytes -= len(p.data)
	return p.data, 0
}

func (l *lane) run() {
	for {
		data, wait := l.next()
		if data != nil {
			if e := l.n.reach(l.d); e != nil {
				e.deliver(data)
			}
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-l.n.ctx.Done():
			return
		case <-l.wake:
		case <-due:
		}
	}
}

// Endpoint is one member's side of a Memory. It has Transport's methods for messages and peers,
// with the same meaning; URLs are ignored.
type Endpoint struct {
	n       *Memory
	id      uint64
	h       Handler
	src     SnapshotSource
	joined  time.Time
	reports *reporter
	ctx     context.Context
	cancel  context.CancelFunc

	mu      sync.Mutex
	peers   map[uint64]time.Time // when added
	sending map[uint64]bool      // a snapshot is under way to
	removed func(error)
}

// OnRemoved sets what corresponds to Config.Removed of a Transport.
func (e *Endpoint) OnRemoved(fn func(error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.removed = fn
}

// Send is Transport.Send.
func (e *Endpoint) Send(msgs []*raftpb.Message) {
	if e.ctx.Err() != nil {
		return
	}
	for _, m := range msgs {
		to := m.GetTo()
		if to == 0 {
			continue
		}
		e.mu.Lock()
		_, known := e.peers[to]
		e.mu.Unlock()
		if m.GetType() == raftpb.MsgSnap {
			if !known {
				e.reports.snapshot(to, false)
			} else {
				e.startSnapshot(m)
			}
			continue
		}
		if !known {
			continue
		}
		d := direction{e.id, to}
		if e.n.reach(d) == nil {
			e.reports.unreachable(to)
			continue
		}
		bulk := m.GetType() == raftpb.MsgApp || m.GetType() == raftpb.MsgProp
		if !e.n.lane(laneID{d, bulk}).put(e.n.linkNow(d), marshalMessage(m)) {
			e.reports.unreachable(to)
		}
	}
}

// deliver hands an encoded message to the member.
func (e *Endpoint) deliver(data []byte) {
	m, err := unmarshalMessage(data)
	if err != nil {
		panic("transport: a message does not survive its encoding: " + err.Error())
	}
	if e.h.IsRemoved(m.GetFrom()) {
		e.n.tellRemoved(m.GetFrom())
		return
	}
	// As in the real transport, which learns the address from the request: a member that does not
	// know its leader yet must be able to answer it.
	e.AddRemote(m.GetFrom(), nil)
	if m.GetTo() == e.id {
		_ = e.h.Process(e.ctx, m) // the real transport logs it
	}
}

// tellRemoved is the 403 or 410 of the real protocol.
func (n *Memory) tellRemoved(id uint64) {
	n.mu.Lock()
	e := n.endpoints[id]
	n.mu.Unlock()
	if e == nil || e.ctx.Err() != nil {
		return
	}
	e.mu.Lock()
	fn := e.removed
	e.mu.Unlock()
	if fn != nil {
		fn(errMemberRemoved)
	}
}

func (e *Endpoint) startSnapshot(m *raftpb.Message) {
	to := m.GetTo()
	e.mu.Lock()
	busy := e.sending[to]
	e.sending[to] = true
	e.mu.Unlock()
	if busy {
		return
	}
	e.n.wg.Go(func() {
		err := e.runSnapshot(m)
		e.mu.Lock()
		delete(e.sending, to)
		e.mu.Unlock()
		if err != nil {
			e.reports.unreachable(to)
		}
		e.reports.snapshot(to, err == nil)
	})
}

var errLinkDown = errors.New("transport: the link is down")

func (e *Endpoint) runSnapshot(m *raftpb.Message) error {
	if e.src == nil {
		return errors.New("transport: no snapshot source")
	}
	d := direction{e.id, m.GetTo()}
	body, err := e.src.OpenSnapshot(e.ctx, m, Software{Kind: KindBelay})
	if err != nil {
		return err
	}
	closed := sync.OnceValue(body.Close)
	defer closed()
	// A member that stops breaks its connections, whatever the other one does with what has come.
	defer context.AfterFunc(e.ctx, func() { _ = closed() })()
	to := e.n.reach(d)
	if to == nil {
		return errLinkDown
	}
	defer context.AfterFunc(to.ctx, func() { _ = closed() })()
	received, err := unmarshalMessage(marshalMessage(m))
	if err != nil {
		return err
	}
	r := &linkReader{e: e, to: to, d: d, r: body}
	if err := r.pass(0); err != nil {
		return err
	}
	if to.h.IsRemoved(e.id) {
		e.n.tellRemoved(e.id)
		return errMemberRemoved
	}
	if err := to.h.ReceiveSnapshot(to.ctx, received, r, KindBelay); err != nil {
		return err
	}
	if e.n.reach(direction{d.to, d.from}) == nil {
		return errLinkDown // the answer does not come back
	}
	return nil
}

// A linkReader is a snapshot's body as it comes out of a link.
type linkReader struct {
	e, to *Endpoint
	d     direction
	r     io.Reader
}

// pass waits as long as n bytes take, and fails if they do not arrive.
func (r *linkReader) pass(n int) error {
	link := r.e.n.linkNow(r.d)
	wait := time.Duration(0)
	if n == 0 {
		wait = link.Delay
	}
	if link.BytesPerSecond > 0 {
		wait += time.Duration(float64(n) / float64(link.BytesPerSecond) * float64(time.Second))
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-r.e.ctx.Done():
		case <-r.to.ctx.Done():
		}
	}
	if r.e.ctx.Err() != nil || r.e.n.reach(r.d) != r.to {
		return errLinkDown
	}
	return nil
}

func (r *linkReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if perr := r.pass(n); perr != nil {
		return 0, perr
	}
	return n, err
}

// AddPeer is Transport.AddPeer.
func (e *Endpoint) AddPeer(id uint64, urls []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.peers[id]; !ok && id != e.id && id != 0 {
		e.peers[id] = time.Now()
	}
}

// AddRemote is Transport.AddRemote.
func (e *Endpoint) AddRemote(id uint64, urls []string) { e.AddPeer(id, urls) }

// UpdatePeer changes nothing: there are no URLs.
func (e *Endpoint) UpdatePeer(id uint64, urls []string) {}

// RemovePeer is Transport.RemovePeer.
func (e *Endpoint) RemovePeer(id uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.peers, id)
}

// ActiveSince is the time since which both directions to a peer have worked, with both members
// present.
func (e *Endpoint) ActiveSince(id uint64) time.Time {
	e.mu.Lock()
	since, known := e.peers[id]
	e.mu.Unlock()
	other := e.n.reach(direction{e.id, id})
	if !known || other == nil || e.n.reach(direction{id, e.id}) == nil {
		return time.Time{}
	}
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	for _, t := range []time.Time{other.joined, e.n.upSince[direction{e.id, id}], e.n.upSince[direction{id, e.id}]} {
		if t.After(since) {
			since = t
		}
	}
	return since
}

// RTT is the delay of the two links; 0 if the peer is not reachable.
func (e *Endpoint) RTT(id uint64) time.Duration {
	if e.ActiveSince(id).IsZero() {
		return 0
	}
	out, back := e.n.linkNow(direction{e.id, id}), e.n.linkNow(direction{id, e.id})
	return max(1, out.Delay+out.Jitter/2+back.Delay+back.Jitter/2)
}

// PeerKind is always Belay.
func (e *Endpoint) PeerKind(id uint64) Kind { return KindBelay }

// Stop takes the member off the network. What it sent before is still delivered.
func (e *Endpoint) Stop() { e.cancel() }
