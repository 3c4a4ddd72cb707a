package listen

import (
	"io"
	"runtime"
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
)

// BoundUnpacking limits how many compressed messages are unpacked at a time in the whole process.
// Unpacking takes a CPU and the memory of a whole message, and grpc would do it for all streams at
// once. The compressed message is in memory already, so nobody waits for a client, and a few at a
// time are as fast as many; together they take a few times the limit of a message.
//
// REQUIRES: grpc is not used yet, as with all of grpc's process-wide settings.
func BoundUnpacking() { boundUnpacking() }

var boundUnpacking = sync.OnceFunc(func() {
	encoding.RegisterCompressor(unpacker{encoding.GetCompressor(gzip.Name), make(chan struct{}, 2*runtime.NumCPU())})
})

// unpacker is a compressor that unpacks at most as many messages at a time as it has slots.
type unpacker struct {
	encoding.Compressor
	slots chan struct{}
}

func (u unpacker) Decompress(r io.Reader) (io.Reader, error) {
	u.slots <- struct{}{}
	leave := sync.OnceFunc(func() { <-u.slots })
	inner, err := u.Compressor.Decompress(r)
	if err != nil {
		leave()
		return nil, err
	}
	return unpacking{inner, leave}, nil
}

// unpacking is the reader of one message. grpc closes it, however it ended.
type unpacking struct {
	io.Reader
	leave func()
}

func (p unpacking) Close() error {
	p.leave()
	if c, ok := p.Reader.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
