package rpc

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/mem"
)

// lookingCodec counts how requests come, and checks what is in them: what filled makes of its length.
type lookingCodec struct {
	encoding.CodecV2
	owned, pieces, wrong atomic.Int64
}

func (c *lookingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if len(data) == 1 {
		if _, ok := data[0].(Owned); ok {
			c.owned.Add(1)
		}
	} else if len(data) > 1 {
		c.pieces.Add(1)
	}
	err := c.CodecV2.Unmarshal(data, v)
	if in, ok := v.(*testpb.SimpleRequest); ok {
		if body := in.GetPayload().GetBody(); !bytes.Equal(body, filled(len(body), byte(len(body)))) {
			c.wrong.Add(1)
		}
	}
	return err
}

// TestLongMessages: what comes of a long message lies in one piece of memory, and is what was sent,
// however many calls share the connection, packed or not.
func TestLongMessages(t *testing.T) {
	o := testOptions()
	codec := &lookingCodec{CodecV2: o.Codec}
	o.Codec = codec
	client := dial(t, serve(t, ours(o), &echo{}))
	call := func(n int, opts ...grpc.CallOption) {
		_, err := client.UnaryCall(context.Background(), &testpb.SimpleRequest{Payload: &testpb.Payload{Body: filled(n, byte(n))}}, opts...)
		if err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for _, n := range []int{0, 1, 16379, 16380, 40_000, 65_500, 65_535, 65_536, 70_001, 300_000, 1<<20 - 1000} {
				call(n + i)
			}
		})
	}
	wg.Wait()
	if n := codec.owned.Load(); n < 16*3 {
		t.Errorf("%d messages came in one piece of memory", n)
	}
	before := codec.owned.Load()
	call(60_000)
	if codec.owned.Load() != before {
		t.Error("a message that no window was granted for was gathered")
	}
	call(500_000, grpc.UseCompressor("gzip"))
	if n := codec.wrong.Load(); n > 0 {
		t.Errorf("%d messages are not what was sent", n)
	}
}
