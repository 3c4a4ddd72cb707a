package mvcc

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// checkKnown fails if the filter says of a key that exists that it does not. REQUIRES: nothing is
// being written.
func (r *rig) checkKnown() {
	r.t.Helper()
	res, err := r.Range(r.t.Context(), []byte{0}, []byte{0}, RangeOptions{KeysOnly: true})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, kv := range res.KVs {
		if r.exists.never(kv.Key) {
			r.t.Fatalf("the filter says that %q does not exist", kv.Key)
		}
	}
}

func TestExistsSparesLookUps(t *testing.T) {
	r := newRig(t, Options{CacheBytes: 1})
	for i := range 100 {
		r.do(op{key: fmt.Sprint("before", i), value: "v"})
	}
	r.close()
	r.open()
	<-r.keyCounts.ready
	r.do(op{key: "after", value: "v"})
	r.do(op{key: "after", del: true})
	r.checkKnown()
	wrong := 0
	for i := range 1000 {
		if !r.exists.never(fmt.Append(nil, "other", i)) {
			wrong++
		}
	}
	if wrong > 50 {
		t.Errorf("the filter is wrong about %d of 1000 keys that never were", wrong)
	}
	if r.exists.never([]byte("after")) {
		t.Error("a key that was created after the filter was complete is not in it")
	}
}

// TestExistsStaysBounded deletes what it puts, so that a small filter is built anew beside the
// traffic, again and again.
func TestExistsStaysBounded(t *testing.T) {
	r := newRig(t, Options{CacheBytes: 1, ExistsFilterBytes: 4 * bloomBlockBytes, CompactionSleep: -1})
	<-r.keyCounts.ready
	first := r.exists.filter
	r.do(op{key: "stays", value: "v"})
	deadline := time.Now().Add(30 * time.Second)
	for i := 0; ; i++ {
		r.do(op{key: fmt.Sprint("goes", i), value: "v"})
		r.do(op{key: fmt.Sprint("goes", i), del: true})
		r.exists.mu.Lock()
		renewed, bytes := r.exists.filter != first, r.exists.filter.bytes
		r.exists.mu.Unlock()
		if bytes > r.opts.ExistsFilterBytes {
			t.Fatalf("the filter has %d bytes, %d are allowed", bytes, r.opts.ExistsFilterBytes)
		}
		if renewed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a filter full of deleted keys is not built anew")
		}
	}
	r.checkKnown()
}

// TestExistsWhileBuilding creates, deletes and compacts while the pass over all keys is under way,
// after Open and when a filter is renewed. After each transaction, no key that exists may be
// missing.
func TestExistsWhileBuilding(t *testing.T) {
	for _, seed := range seeds(t, 4) {
		t.Run(name(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			r := newRig(t, Options{CacheBytes: 1, ExistsFilterBytes: 40 * bloomBlockBytes, CompactionSleep: -1})
			exists := map[string]bool{}
			key := func() string { return fmt.Sprint("k", rng.IntN(2000)) }
			step := func() {
				var ops []op
				for n := 1 + rng.IntN(60); n > 0; n-- {
					k := key()
					if del := rng.IntN(3) == 0; del {
						ops = append(ops, op{key: k, del: true})
						exists[k] = false
					} else {
						ops = append(ops, op{key: k, value: "v"})
						exists[k] = true
					}
				}
				var cmds []command
				for len(ops) > 0 {
					n := 1 + rng.IntN(len(ops))
					cmds, ops = append(cmds, command{ops: ops[:n]}), ops[n:]
				}
				r.apply(cmds...)
				if rng.IntN(20) == 0 {
					r.apply(command{compact: r.Revision()})
				}
				for k, there := range exists {
					if there && r.exists.never([]byte(k)) {
						t.Fatalf("the filter says that %q does not exist", k)
					}
				}
			}
			for range 6 {
				for range 20 {
					step()
				}
				if rng.IntN(2) == 0 {
					<-r.keyCounts.ready
				}
				r.flush()
				r.close()
				r.open()
			}
			<-r.keyCounts.ready
			r.checkKnown()
		})
	}
}

// TestExistsCreatedWhileRenewed: what is created while a filter is built anew must be in the new
// one, though the pass over all keys began before.
func TestExistsCreatedWhileRenewed(t *testing.T) {
	r := newRig(t, Options{CacheBytes: 1})
	<-r.keyCounts.ready
	r.exists.renew()
	r.do(op{key: "meanwhile", value: "v"})
	r.exists.done(nil)
	if r.exists.never([]byte("meanwhile")) {
		t.Error("a key that was created while the filter was built anew is not in it")
	}
}
