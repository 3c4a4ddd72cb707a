package state

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/command"
)

// Whatever an entry decodes from, applying it must neither panic nor stop: it would stop every
// member, for ever. The one exception is told in doc.go.
func FuzzApply(f *testing.F) {
	g := newGenerator(1)
	for range 300 {
		if req := g.request(); req != nil {
			data, err := command.Encode(req)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte{0x22, 0x00})                   // an empty put
	f.Add([]byte{0x32, 0x02, 0x12, 0x00})       // a transaction with an operation that is none
	f.Add([]byte{0x32, 0x04, 0x12, 0x02, 0x22}) // cut short
	logger, _ := observed()
	r := newRig(f, Config{Logger: logger})
	for range 200 {
		r.do(g.request())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := command.Decode(data)
		if err != nil {
			return
		}
		if kindOf(req) == kindNone && len(req.ProtoReflect().GetUnknown()) > 0 {
			return
		}
		// Twice and with a put behind it: the second must not suffer from what the first did.
		entries := r.next(req, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("after")}}, req)
		entries[2].Unawaited = true
		r.Apply(entries)
		if res := r.do(&pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{}}); res.Err != nil {
			t.Fatal(res.Err)
		}
	})
}
