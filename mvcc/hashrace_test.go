package mvcc

import (
	"context"
	"fmt"
	"sync"
	"testing"
)

// TestHashWhileWriting: the hash of the newest revision, and of one that was just reached, is that of
// all that was written up to it, however it is met by writes. A hash without the versions of its own
// revision made others raise the alarm CORRUPT.
func TestHashWhileWriting(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	defer writing.Wait()
	defer cancel()
	writing.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			r.apply(command{ops: []op{{key: fmt.Sprintf("key%d", n%16), value: fmt.Sprint(n)}}})
			if n%64 == 63 { // so that each hash is of little
				r.apply(command{compact: r.Revision()})
			}
		}
	})
	compared := 0
	for tries := 0; compared < 500 && tries < 5000; tries++ {
		rev := int64(0)
		if tries%2 == 1 {
			rev = r.Revision() + 1 // it may be reached meanwhile
		}
		hash, compact, current, err := r.HashState(ctx, rev)
		if err != nil {
			continue
		}
		if rev == 0 {
			rev = current
		}
		again, compactAgain, _, err := r.HashState(ctx, rev)
		if err != nil || compactAgain != compact {
			continue
		}
		if compared++; hash != again {
			t.Fatalf("the hash of revision %d after compaction %d was %08x, and then %08x", rev, compact, hash, again)
		}
	}
	if compared < 100 {
		t.Errorf("only %d hashes were compared", compared)
	}
}
