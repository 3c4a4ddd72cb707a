package node

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
)

// diskAnswerTimeout is how long a member may take to report the state of its disk. One that takes
// longer should not get leadership.
const diskAnswerTimeout = time.Second

// peerDisks is replica.PeerDisks over the peer ports.
type peerDisks struct {
	client func() *http.Client
	urls   func(id uint64) []string
	own    func() replica.DiskReport
	tell   func(id uint64, report replica.DiskReport)
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	asking  map[uint64]bool
	running sync.WaitGroup
	stopped bool
}

func newPeerDisks(n *Node) *peerDisks {
	d := &peerDisks{
		asking: make(map[uint64]bool), client: n.transport.Client, urls: n.peerURLs,
		own: func() replica.DiskReport {
			report := n.replica.Disk()
			report.Leaving = n.life.ends()
			return report
		},
		tell: func(id uint64, report replica.DiskReport) { n.replica.TellDisk(id, report) },
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// AskDisks asks each member in a goroutine, unless it is being asked already.
func (d *peerDisks) AskDisks(ids []uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return
	}
	for _, id := range ids {
		if d.asking[id] {
			continue
		}
		d.asking[id] = true
		d.running.Go(func() {
			if report, err := d.ask(id); err == nil {
				d.tell(id, report)
			}
			d.mu.Lock()
			delete(d.asking, id)
			d.mu.Unlock()
		})
	}
}

func (d *peerDisks) ask(id uint64) (report replica.DiskReport, err error) {
	ctx, cancel := context.WithTimeout(d.ctx, diskAnswerTimeout)
	defer cancel()
	err = peers.Ask(ctx, d.client(), d.urls(id), peers.Question{Path: peers.PathDisk}, func(a peers.Answer) error {
		report = replica.DiskReport{}
		return errors.Join(a.OK(), json.Unmarshal(a.Body, &report))
	})
	return report, err
}

// register serves the state of this member's disks. etcd answers 404, which counts as unknown.
func (d *peerDisks) register(mux *peers.Mux) {
	mux.Handle(peers.PathDisk, http.MethodGet, peers.NamedMembers, func(w http.ResponseWriter, _ *http.Request) {
		peers.AnswerJSON(w, d.own())
	})
}

func (d *peerDisks) stop() {
	d.mu.Lock()
	d.stopped = true
	d.mu.Unlock()
	d.cancel()
	d.running.Wait()
}

// storeDisk returns the state of the disk under the store, for the replica.
func (n *Node) storeDisk() replica.StoreDisk {
	oldest, sinceProgress := n.store.Disk()
	return replica.StoreDisk{Oldest: oldest, SinceProgress: sinceProgress}
}
