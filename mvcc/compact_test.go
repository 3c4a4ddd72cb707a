package mvcc

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/belaydb/belay/store"
)

// TestFailedCompactionGoesOn: a compaction that failed is tried again until it succeeds, and later ones follow.
func TestFailedCompactionGoesOn(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	r := newRig(t, Options{Logger: zap.New(core), CompactionSleep: -1, compactionRetry: time.Millisecond})
	for range 3 {
		r.do(op{key: "k", value: "v"})
	}
	progress := func(write func(b *store.Batch) error) {
		t.Helper()
		b := r.st.NewLocalBatch()
		if err := errors.Join(write(b), b.Commit()); err != nil {
			t.Fatal(err)
		}
	}
	progress(func(b *store.Batch) error { return b.Set(store.MetaKey(metaProgress), []byte("bad")) })
	r.apply(command{compact: 2})
	r.apply(command{compact: 3})
	deadline := time.Now().Add(30 * time.Second)
	for logs.FilterMessage("Failed compaction").Len() < 2 {
		if time.Now().After(deadline) {
			t.Fatal("a compaction that cannot be done is not said to fail twice")
		}
		time.Sleep(time.Millisecond)
	}
	progress(func(b *store.Batch) error { return b.Delete(store.MetaKey(metaProgress)) })
	select {
	case <-r.Compacted(3):
	case <-time.After(30 * time.Second):
		t.Fatal("a compaction that failed is not gone on with")
	}
	if _, err := r.Range(t.Context(), []byte("k"), nil, RangeOptions{Rev: 2}); !errors.Is(err, ErrCompacted) {
		t.Errorf("a range below the compaction gives %v", err)
	}
}
