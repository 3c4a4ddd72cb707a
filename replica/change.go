package replica

import (
	"context"
	"sync"

	"github.com/belaydb/belay/command"
)

// Member changes, and what a crash must not undo.
//
// To raft a commit index promises nothing: a member that forgets it learns it again from the
// others. So it is written with the next group, and an ordinary write does not wait for it. But a
// member adopts a change as its configuration when it is applied, and after a crash it applies only
// what its disk knows to be committed. A member that forgets a removal counts the removed member
// again, which may be gone for good: of two members, the remaining one would wait for the other's
// vote for ever. Hence:
//
//   - A change is answered, and a removal acted upon (its connections closed, its
//     messages refused), when the commit that covers it is durable here. Until then
//     RemovalPending says so. The applier does not wait for that, the answer does.
//   - A removed member does not act on its own knowledge. It votes and acknowledges until another
//     member has told it (ToldRemoved), which has the removal on its disk.
//   - A follower does not even learn that its own removal is committed (ownRemoval.hide): otherwise
//     it would no longer stand for election, and if its log is the longest nobody else could win
//     one. Raft tolerates this like a lost message.
//   - A leader hands leadership over before its own removal is proposed. If nobody takes over, it
//     proposes the removal itself, and nothing after it: everything in its log when the removal is
//     applied is then on the disks of a quorum, so that a remaining member can be elected.

// keeper makes applied member changes durable, and then announces them.
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

// add queues a change that was applied.
func (k *keeper) add(a appliedChange) {
	k.mu.Lock()
	k.applied = append(k.applied, a)
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// RemovalPending reports whether a member's removal was applied and may still be lost in a crash:
// nobody may learn of it, and the member must be treated as not removed. Any goroutine may call it.
func (r *Replica) RemovalPending(id uint64) bool { return r.keeper.pending(id) }

func (k *keeper) pending(id uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.removals[id]
}

// ToldRemoved is called, perhaps often, when another member has said that this one was removed. It
// answers the requests for that removal made here. Any goroutine may call it.
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

// ownRemoval records that this member is asked for its own removal, until done is called.
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

// run makes applied changes durable and then announces them.
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
		// Raft gave the log the commit index before it gave the applier the entries that it covers.
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
