package datadir

import (
	"context"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/mvcc"
)

// TestTelling: a walk tells what it has read in all, and nobody if nobody looks.
func TestTelling(t *testing.T) {
	var told int64
	ctx := Progress(func(step string, done, total int64) {
		if step != "hashing" || total != 0 {
			t.Errorf("%s of %d", step, total)
		}
		told = done
	}).telling(t.Context(), "hashing")
	for range 3 {
		if err := ctx.(mvcc.Pacer).Pace(2, 10); err != nil {
			t.Fatal(err)
		}
	}
	if told != 30 {
		t.Errorf("told of %d bytes", told)
	}
	if ctx := (Progress)(nil).telling(context.Background(), "hashing"); ctx != context.Background() {
		t.Error("a context that tells nobody")
	}
}

// listed is a source of versions alone.
type listed struct {
	Source
	kvs []*mvccpb.KeyValue
}

func (l listed) Revisions(each func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
	for i, kv := range l.kvs {
		if err := each(int64(i), 0, false, kv); err != nil {
			return err
		}
	}
	return nil
}

// TestMetered: what is read is told in bytes or versions, and passed on as it is.
func TestMetered(t *testing.T) {
	kvs := []*mvccpb.KeyValue{{Key: []byte("k"), Value: []byte("1234")}, nil, {Key: []byte("k2"), Value: []byte("12345678")}}
	for _, tc := range []struct {
		versions bool
		want     int64
	}{{false, 15}, {true, 2}} {
		var told, passed int64
		src := metered{Source: listed{kvs: kvs}, versions: tc.versions, total: 100, tell: func(step string, done, total int64) {
			if step != "writing" || done < told || total != 100 {
				t.Errorf("%s, %d of %d", step, done, total)
			}
			told = done
		}}
		if err := src.Revisions(func(int64, int64, bool, *mvccpb.KeyValue) error { passed++; return nil }); err != nil || told != tc.want || passed != 3 {
			t.Errorf("%v, told %d of %d, %d passed", err, told, tc.want, passed)
		}
	}
	if err := (metered{Source: listed{kvs: kvs}}).Revisions(func(int64, int64, bool, *mvccpb.KeyValue) error { return nil }); err != nil {
		t.Error(err)
	}
}
