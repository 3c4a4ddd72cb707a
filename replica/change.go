package replica

import (
	"context"
	"sync"

	"github.com/belaydb/belay/command"
)

// Member changes, and what a crash must not take back.
//
// To raft a commit index promises nothing: who forgets it hears it again from the
// others. So it is written with the next group, and an ordinary write does not wait
// for it. But a member takes a change as its configuration when it is applied, and
// after a crash it applies only what its disk knows to be committed. Who forgets a
// removal counts the removed member again, and that one may be gone for good: of two
// members, the one that is left would wait for the other's vote for ever. Hence:
//
//   - A change is answered, and a removal acted upon (its connections closed, its
//     messages refused), when the commit that covers it is durable here. Until then
//     RemovalPending says so. The applier does not wait for that, the answer does.
//   - Who is removed does not go by its own word. It votes and acknowledges until
//     another member has told it (ToldRemoved), since that one has it on its disk.
//   - A follower does not even hear that its own removal is committed (ownRemoval.hide):
//     else it would not stand for election any more, and where its log is the longest
//     nobody else could win one. Raft bears it, as it bears a lost message.
//   - A leader hands leadership over before its own removal is proposed. Where nobody
//     takes it, it proposes the removal itself, and nothing behind it: all that is in
//     its log when the removal is applied is then on the disks of a quorum, so that
//     some member that stays can have its vote.

// keeper sees to it that applied member changes become durable, and then tells of them.
type keeper struct {
	*env
	waiters *waiters

	mu sync.Mutex
	// applied wait for the disk, in order.
	applied []appliedChange
	// removals are the members whose removal is among them.
	removals map[uint64]bool
	// own are the proposals of this member's own removal, by id.
	own  map[uint64]bool
	told bool          // by another member, that this one was removed
	wake chan struct{} // capacity 1: applied is not empty
}

type appliedChange struct {
	id      uint64 // of the proposal
	removes uint64 // the member; 0: none
	result  command.Result
}

func (k *keeper) init(e *env, w *waiters) {
	k.env, k.waiters = e, w
	k.removals, k.own, k.wake = make(map[uint64]bool), make(map[uint64]bool), make(chan struct{}, 1)
}

// removing is called before the removal of a member is applied.
func (k *keeper) removing(id uint64) {
	k.mu.Lock()
	k.removals[id] = true
	k.mu.Unlock()
}

// add takes a change that was applied.
func (k *keeper) add(a appliedChange) {
	k.mu.Lock()
	k.applied = append(k.applied, a)
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// RemovalPending says whether a member's removal was applied and may still be
// forgotten in a crash: nobody may be told of it, and the member is to be treated as
// one that was not removed. Any goroutine.
func (r *Replica) RemovalPending(id uint64) bool { return r.keeper.pending(id) }

func (k *keeper) pending(id uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.removals[id]
}

// ToldRemoved is called, perhaps often, when another member has said that this one
// was removed. It answers those who asked for that here. Any goroutine.
func (r *Replica) ToldRemoved() { r.keeper.noteTold() }

func (k *keeper) noteTold() {
	k.mu.Lock()
	k.told = true
	var ids []uint64
	for id := range k.own {
		ids = append(ids, id)
	}
	k.mu.Unlock()
	for _, id := range ids {
		k.waiters.finish(id, command.Result{}, nil)
	}
}

// ownRemoval notes that this member is asked for its own removal, until done.
func (k *keeper) ownRemoval(id uint64) (done func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.own[id] = true
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.own, id)
	}
}

// run makes applied changes durable and then tells of them.
func (k *keeper) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with run, or makes it end
		select {
		case <-k.stopped:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		select {
		case <-k.stopped:
			return
		case <-k.wake:
		}
		k.mu.Lock()
		batch := k.applied
		k.applied = nil
		k.mu.Unlock()
		// Raft gave the log the commit before it gave the applier what it covers.
		if err := k.cfg.Log.Sync(ctx); err != nil {
			return // the replica stops, or the log has failed, which stops the process
		}
		changed := false
		k.mu.Lock()
		for _, a := range batch {
			delete(k.removals, a.removes)
			changed = changed || a.result.Err == nil
		}
		told := k.told
		k.mu.Unlock()
		if changed && k.cfg.MembersChanged != nil {
			k.cfg.MembersChanged()
		}
		for _, a := range batch {
			if a.removes != k.cfg.ID || a.result.Err != nil || told {
				k.waiters.finish(a.id, a.result, nil)
			}
		}
	}
}
