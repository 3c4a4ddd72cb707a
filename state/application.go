package state

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/store"
)

// application is one batch of entries being applied: what is done to the store and what readers
// will see of it. A machine makes one (begin) and it ends with commit; so holding one means having
// an open batch. It belongs to the applier goroutine.
type application struct {
	m *Machine
	b *store.Batch
	w *mvcc.Writer // into b

	bytes int64 // rough bytes in the batch, for the quota
	at    struct {
		index uint64
		kind  kind
	} // what is being applied, for the message of a stop

	// entry is the data of what is being applied, and where the log has it. Values before from
	// have been found.
	entry struct {
		data  []byte
		place command.EntryPlace
		from  int
		// placed is how many bytes of values the store refers to there.
		placed int
	}

	// cluster is what readers see, or a changed copy of it that is in the batch and is published
	// after the commit; policy likewise.
	cluster *cluster
	policy  *auth.Policy

	// changes are the transactions of the batch that changed keys, in revision order, for the sink.
	changes []transaction
}

type transaction struct {
	rev    int64
	events []*mvccpb.Event
}

// begin opens a batch that ends with this entry. REQUIRES: the one before has ended.
func (m *Machine) begin(index, term uint64) *application {
	a := &m.spare
	a.m, a.bytes = m, 0
	a.at.index, a.at.kind = index, kindNone
	defer a.stopOnPanic()
	a.cluster, a.policy = m.published.Load(), m.policy.Load().policy
	a.b = m.cfg.Store.NewBatch(index, term)
	a.w = m.cfg.KV.NewWriter(a.b)
	return a
}

// end drops what a batch held, so that a use after its end meets a nil pointer. It keeps only the
// memory of changes, and what the message of a stop needs.
func (a *application) end() {
	clear(a.changes)
	*a = application{m: a.m, at: a.at, changes: a.changes[:0]}
}

// commit makes the batch permanent, then visible, then known; the order is part of the package's
// promise. It is the last call on an application.
func (a *application) commit(index, term uint64, entries int) {
	start := time.Now()
	if err := a.b.Commit(); err != nil {
		a.failed("cannot write to the database", err)
	}
	if took := time.Since(start); took > a.m.cfg.WarningApply {
		a.warnSlowCommit(took, index, entries)
	}
	// Before the keys: a reader that sees what this batch wrote, and then reads the policy, must
	// see its rules too.
	a.m.publishPolicy(a.policy)
	a.w.Publish()
	a.m.publishCluster(a.cluster)
	a.m.applied.Store(&position{index, term})
	a.m.checkInvariants()
	if a.m.cfg.Sink != nil {
		for i := range a.changes {
			a.m.cfg.Sink.Notify(a.changes[i].rev, a.changes[i].events)
		}
	}
	a.end()
}

// fatalStop is what stop panics with if the logger did not end the process, so that stopOnPanic
// lets it pass.
type fatalStop struct{ error }

// stop ends the process: this member's state can no longer be trusted to equal the others'.
func (a *application) stop(why string) {
	if a.w != nil {
		a.w.Drop() // the process may go on for a while, or for a test
	}
	a.m.logger.Fatal("cannot apply a committed entry; stopping, so that this member's data does not part from the cluster's",
		zap.Uint64("index", a.at.index), zap.Stringer("kind", a.at.kind), zap.String("reason", why))
	panic(fatalStop{fmt.Errorf("state: cannot apply entry %d (%s): %s", a.at.index, a.at.kind, why)})
}

// failed stops over an error of the store or of what is kept in it. Damaged files are told of
// first: the next start of a member that heals does so, and would meet the same damage in the same
// entry if it did not know.
func (a *application) failed(what string, err error) {
	if a.m.cfg.Damaged != nil && store.IsDamage(err) {
		a.m.cfg.Damaged(err)
	}
	a.stop(fmt.Sprintf("%s: %v", what, err))
}

func (a *application) stopOnPanic() {
	switch p := recover().(type) {
	case nil:
	case fatalStop:
		panic(p)
	default:
		a.stop(fmt.Sprintf("broken invariant: %v\n%s", p, debug.Stack()))
	}
}

// orStop lets an error for the client pass and stops for any other: those come from reading the
// store.
func (a *application) orStop(what string, err error) error {
	switch {
	case err == nil:
	case errors.Is(err, mvcc.ErrCompacted), errors.Is(err, mvcc.ErrFutureRev),
		errors.Is(err, ErrEmptyKey), errors.Is(err, ErrInvalidSortOption), errors.Is(err, mvcc.ErrTooLarge):
	default:
		a.failed(what, err)
	}
	return err
}

// revisionHeader is a header as Apply fills it.
func (a *application) revisionHeader() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: a.w.Rev()}
}

func (a *application) set(key, value []byte) {
	if err := a.b.Set(key, value); err != nil {
		a.failed("cannot write to the batch", err)
	}
}

func (a *application) delete(key []byte) {
	if err := a.b.Delete(key); err != nil {
		a.failed("cannot write to the batch", err)
	}
}
