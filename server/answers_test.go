package server

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"runtime"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/state"
)

// TestAnswersHaveRoom: while others' answers take all the room, whatever reads much waits, and
// whatever reads little does not; each gives back what it held when its answer has been sent, when its
// client goes, and when it fails.
func TestAnswersHaveRoom(t *testing.T) {
	m := newReadMember(t, func(c *Config, _ *state.Config) { c.AnswersBytes = 8 << 20 })
	room := m.turns.answers
	for i := range 4 { // fewer keys than are free, of many bytes
		_, err := m.kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "large/%d", i), Value: bytes.Repeat([]byte{1}, 200<<10)})
		must(t, err)
	}
	get := func(key, end string, edit func(*pb.RangeRequest)) func(context.Context) error {
		r := &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end)}
		if edit != nil {
			edit(r)
		}
		return func(ctx context.Context) error {
			resp, err := m.kv.Range(ctx, r)
			if err == nil && resp.Count == 0 {
				t.Error("nothing")
			}
			return err
		}
	}
	until(t, "the keys are counted", func() bool { n, _ := m.cfg.KV.Estimate([]byte("long/"), []byte("long0")); return n > longKeys*3/4 })
	for name, do := range map[string]func(context.Context) error{
		"many keys":    get("long/", "long0", nil),
		"keys only":    get("long/", "long0", func(r *pb.RangeRequest) { r.KeysOnly = true }),
		"large values": get("large/", "large0", nil),
		"transaction": func(ctx context.Context) error {
			_, err := m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(opRange(&pb.RangeRequest{Key: []byte("long/"), RangeEnd: []byte("long0")}))})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			others, err := room.Enter(t.Context(), "somebody", 8<<20, time.Minute)
			must(t, err)
			defer others.Release()
			ctx, cancel := context.WithCancel(t.Context())
			gone := make(chan error, 1)
			go func() { gone <- do(ctx) }()
			until(t, "it waits", func() bool { return room.Waiting() == 1 })
			must(t, get("short/", "short0", nil)(t.Context()))
			must(t, get("long/00001", "", nil)(t.Context()))
			cancel()
			checkStatus(t, <-gone, codes.Canceled, "context canceled")
			until(t, "it has gone", func() bool { return room.Waiting() == 0 })

			done := make(chan error, 1)
			go func() { done <- do(t.Context()) }()
			until(t, "it waits", func() bool { return room.Waiting() == 1 })
			others.Release()
			must(t, <-done)
			until(t, "all is given back", func() bool { return room.Held() == 0 })
		})
	}
	checkStatus(t, get("long/", "long0", func(r *pb.RangeRequest) { r.Revision = math.MaxInt64 })(t.Context()), codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision")
	if n := room.Held(); n != 0 {
		t.Errorf("%d bytes are held after an error", n)
	}
}

// TestAnswerOutgrowsItsRoom: what was foreseen too small is held as it is, and does not wait.
func TestAnswerOutgrowsItsRoom(t *testing.T) {
	ts := newTurns(NewMetrics(nil, MetricsOptions{}), 1<<20)
	tn := ts.newTurn(t.Context())
	tn.collects = true
	must(t, tn.expect(freeKeys+1, func(int64) (int64, int64, error) { return 10, 100, nil }))
	before := ts.answers.Held()
	if want := answerCost(freeKeys+1, 10*(freeKeys+1)); before != want {
		t.Errorf("%d bytes are held, want %d", before, want)
	}
	must(t, tn.Pace(1, 3<<20))
	if held := ts.answers.Held(); held < 6<<20 {
		t.Errorf("%d bytes are held of an answer with 3 MiB of values", held)
	}
	tn.end()
	tn.drop()
	tn.drop()
	if ts.answers.Held() != 0 {
		t.Errorf("%d bytes are held at the end", ts.answers.Held())
	}
}

// TestSentPiecesGiveRoomBack: an answer holds less with each piece that grpc frees, and nothing when it
// was sent, or forgotten.
func TestSentPiecesGiveRoomBack(t *testing.T) {
	room := admission.NewRoom(1<<20, nil)
	made := func() mem.BufferSlice {
		h, err := room.Enter(t.Context(), "a", 900<<10, time.Minute)
		must(t, err)
		w := pieceWriter{}
		w.write(make([]byte, 2*pieceBytes+10))
		w.flush()
		return holding(h, w.out)
	}
	data := made()
	if len(data) != 3 || room.Held() != 2*pieceBytes+10 {
		t.Fatalf("%d pieces, %d bytes are held", len(data), room.Held())
	}
	data[0].Ref()
	data[0].Free()
	if room.Held() != 2*pieceBytes+10 {
		t.Errorf("%d bytes are held while a piece is referred to", room.Held())
	}
	data[0].Free()
	if room.Held() != pieceBytes+10 {
		t.Errorf("%d bytes are held after the first piece", room.Held())
	}
	data[1].Free()
	data[2].Free()
	if room.Held() != 0 {
		t.Errorf("%d bytes are held after the last piece", room.Held())
	}
	made()[0].Free()
	for deadline := time.Now().Add(30 * time.Second); room.Held() != 0; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are held of what was forgotten", room.Held())
		}
	}
}
