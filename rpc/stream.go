package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// prefixBytes is what comes before a message: whether it is compressed, and its length.
const prefixBytes = 5

// A stream is one call. Its fields belong to its connection's mu, but those of the handler.
type stream struct {
	c      *conn
	id     uint32
	req    *request
	closed bool // it is not among the connection's streams any more
	hot    bool // a Hot may serve it: its message has not come
	taken  bool // a Hot has it, and has not answered it
	// ender hears of the end of a taken one; cause is the reason.
	ender Ender
	cause error
	// deadline is the client's; the zero time: it has none.
	deadline time.Time

	// What is received. held is how many bytes of window have been used for what the handler has
	// not taken: complete messages and the one that is under way.
	prefix      [prefixBytes]byte
	prefixs     int              // bytes of prefix
	pieces      mem.BufferSlice  // of the message under way, or, from some point on,
	whole       *strings.Builder // all that came of it; nil: it is in pieces
	need        int64            // bytes of it to come
	size        int64            // bytes of it that came, with its prefix
	messages    []received
	recvErr     error // after the messages: io.EOF, or why there are no more
	recvDone    bool  // the client's side has ended
	idle        bool  // the handler waits for a message
	recvWindow  int64
	held        int64
	granted     int64 // of conn.long.granted, until the handler ends or, of one that streams, the message is complete
	counted     int64 // of granted, in longWindows.used: what is late is not
	seen        int64 // need when its progress was looked at last
	late        bool  // its message: see long.go
	waits       bool  // among conn.long.waiting
	waitsFrom   time.Time
	contentLeft int64 // of the content length; negative: none was announced

	// What is sent.
	sendWindow int64
	queue      mem.BufferSlice
	offset     int // of the queue's first piece that is sent
	queued     int // bytes
	room       callRoom
	ready      bool
	next, prev *stream // in conn.ready
	header     metadata.MD
	headed     bool // the answer's headers are out
	ending     bool // trailers follow the queue
	trailers   []hpack.HeaderField

	// The handler's.
	ctx      context.Context
	cancel   context.CancelFunc // nil: no handler was begun
	running  bool               // it has not ended
	orphan   bool               // it, or a Hot, is still busy behind its stream's end
	recvWake chan struct{}      // capacity 1: there is a message, or the end
	sendWake chan struct{}      // capacity 1: there is room in the queue
	trailer  metadata.MD
	unpacker encoding.Compressor
	packer   encoding.Compressor
	compress string // packer's name
	gotFirst bool
}

// begin is start for a stream whose message cannot be a Hot's, if it has not been begun.
// REQUIRES: mu.
func (st *stream) begin() {
	if st.hot {
		st.hot = false
		st.start()
	}
}

// start begins the handler of a stream. REQUIRES: mu.
func (st *stream) start() {
	c := st.c
	ctx := st.req.ctx
	if st.req.timed {
		ctx, st.cancel = context.WithDeadline(ctx, st.deadline)
		stop := context.AfterFunc(ctx, st.expired)
		inner := st.cancel
		st.cancel = func() { stop(); inner() }
	} else {
		ctx, st.cancel = context.WithCancel(ctx)
	}
	st.ctx = grpc.NewContextWithServerTransportStream(ctx, (*transportStream)(st))
	st.recvWake, st.sendWake = make(chan struct{}, 1), make(chan struct{}, 1)
	st.running = true
	c.s.run(st.handle)
}

// expired resets the stream of a call whose deadline has passed.
func (st *stream) expired() {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !st.closed && errors.Is(st.ctx.Err(), context.DeadlineExceeded) {
		c.reset(st, http2.ErrCodeCancel)
		c.kick()
	}
}

// receive takes bytes of messages. REQUIRES: mu.
func (st *stream) receive(p []byte) {
	c := st.c
	for len(p) > 0 {
		if st.recvErr != nil {
			return // nobody will read it, and its window is not given back
		}
		if st.prefixs < prefixBytes {
			n := copy(st.prefix[st.prefixs:], p)
			st.prefixs += n
			st.size += int64(n)
			st.held += int64(n)
			p = p[n:]
			if st.prefixs < prefixBytes {
				return
			}
			st.need = int64(binary.BigEndian.Uint32(st.prefix[1:]))
			if most := int64(c.s.opts.MaxRecvBytes); st.need > most {
				st.recvErr = status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", st.need, most)
				signal(st.recvWake)
				return
			}
		} else {
			n := min(st.need, int64(len(p)))
			if st.whole == nil && st.granted > 0 && (st.size+n)*gatherShare >= st.size+st.need {
				st.gather()
			}
			if st.whole != nil {
				st.whole.Write(p[:n])
			} else {
				st.pieces = append(st.pieces, mem.Copy(p[:n], mem.DefaultBufferPool()))
			}
			st.need -= n
			st.size += n
			st.held += n
			p = p[n:]
		}
		if st.need == 0 {
			if st.whole != nil {
				st.pieces = mem.BufferSlice{ownedBy(st.whole)}
			}
			st.messages = append(st.messages, received{st.prefix[0], st.pieces, st.size})
			c.unread += st.size
			st.prefixs, st.pieces, st.whole, st.size = 0, nil, nil, 0
			if st.clientStreams() {
				c.long.complete(st)
				c.long.ungrant(st)
			}
			signal(st.recvWake)
		}
	}
}

// gatherShare: when one of so many parts of a long message has come, there is one piece of memory
// for all of it. Before, a client that announces long messages and sends nothing would have it
// allocated.
const gatherShare = 8

// gather puts what came of a message into one piece of memory of the message's size, for what is
// still to come, too: so that it is copied once on its way from the reader's buffer to a request. A
// strings.Builder is the way to memory that is not cleared first. REQUIRES: mu, and a window has been
// granted for all of the message, so that there is no more of such memory than LongBytes.
func (st *stream) gather() {
	st.whole = new(strings.Builder)
	st.whole.Grow(int(st.size - prefixBytes + st.need))
	for _, piece := range st.pieces {
		st.whole.Write(piece.ReadOnlyData())
	}
	st.pieces.Free()
	st.pieces = nil
}

// Owned is a received message in one piece of memory, which nobody writes or uses again: who decodes
// it may keep parts of it. A codec meets it as the only buffer of a message.
type Owned struct{ mem.SliceBuffer }

// ownedBy is the memory of a builder that is not used any more, and whose string nobody has.
func ownedBy(b *strings.Builder) Owned {
	s := b.String()
	return Owned{unsafe.Slice(unsafe.StringData(s), len(s))}
}

// dropReceived frees what nobody will read. REQUIRES: mu.
func (st *stream) dropReceived() {
	for _, m := range st.messages {
		st.c.unread -= m.size
		m.data.Free()
	}
	st.messages = nil
	st.pieces.Free()
	st.pieces, st.whole = nil, nil
	st.c.giveConnWindow()
}

// dropQueue frees what will not be sent. REQUIRES: mu.
func (st *stream) dropQueue() {
	st.queue.Free()
	st.queue = nil
	st.c.queued -= st.queued
	st.queued = 0
}

// handle is the handler's goroutine.
func (st *stream) handle() {
	err := st.compression()
	if err == nil {
		err = st.call()
	}
	stat := status.New(codes.OK, "")
	if err != nil {
		stat = statusOf(err)
	}
	c := st.c
	c.mu.Lock()
	st.running = false
	c.long.ungrant(st)
	if st.orphan {
		c.orphans--
	}
	c.finish(st, stat, st.trailer)
	c.kick()
	c.mu.Unlock()
	st.cancel()
}

// call runs what was registered for the method.
func (st *stream) call() error {
	m, o := st.req.called, &st.c.s.opts
	switch {
	case m.unary != nil:
		reply, err := m.unary.Handler(m.impl, st.ctx, st.RecvMsg, o.Unary)
		if err != nil {
			return err
		}
		return st.SendMsg(reply)
	case o.Stream == nil || !m.stream.ClientStreams && !m.stream.ServerStreams:
		return m.stream.Handler(m.impl, st)
	case m == st.c.s.others:
		return o.Stream(nil, st, &grpc.StreamServerInfo{FullMethod: st.req.path, IsClientStream: true, IsServerStream: true}, m.stream.Handler)
	}
	return o.Stream(m.impl, st, &m.info, m.stream.Handler)
}

// compression finds how the client packs its messages: so its answer is packed, too.
func (st *stream) compression() error {
	name := st.req.encoding
	if name == "" || name == encoding.Identity {
		return nil
	}
	z := encoding.GetCompressor(name)
	if z == nil {
		return status.Errorf(codes.Unimplemented, "grpc: Decompressor is not installed for grpc-encoding %q", name)
	}
	st.unpacker, st.packer = z, z
	st.c.mu.Lock()
	st.compress = name
	st.c.mu.Unlock()
	return nil
}

// fail ends a call with the error of one of its messages: what the handler returns then is not told
// any more.
func (st *stream) fail(err error) {
	st.c.mu.Lock()
	st.c.finish(st, status.Convert(err), st.trailer)
	st.c.kick()
	st.c.mu.Unlock()
}

// contextError is the status of a context that has ended.
func contextError(err error) error {
	switch err {
	case context.DeadlineExceeded:
		return status.Error(codes.DeadlineExceeded, err.Error())
	case context.Canceled:
		return status.Error(codes.Canceled, err.Error())
	}
	return status.Errorf(codes.Internal, "Unexpected error from context packet: %v", err)
}

// Context is grpc.ServerStream's.
func (st *stream) Context() context.Context { return st.ctx }

// clientStreams reports whether the client may send more than one message.
func (st *stream) clientStreams() bool {
	m := st.req.called
	return m.stream != nil && m.stream.ClientStreams
}

// RecvMsg is grpc.ServerStream's.
func (st *stream) RecvMsg(m any) error {
	err := st.receiveInto(m)
	if err != nil && err != io.EOF {
		st.fail(err)
	}
	return err
}

func (st *stream) receiveInto(m any) error {
	if err := st.takeMessage(m); err != nil {
		if err == io.EOF && !st.clientStreams() && !st.gotFirst {
			return status.Error(codes.Internal, "cardinality violation: received no request message from non-client-streaming RPC")
		}
		return err
	}
	st.gotFirst = true
	if st.clientStreams() {
		return nil
	}
	switch err := st.takeMessage(m); err {
	case io.EOF:
		return nil
	case nil:
		return status.Error(codes.Internal, "cardinality violation: received multiple request messages for non-client-streaming RPC")
	default:
		return err
	}
}

// takeMessage waits for the next message. The error is a status or io.EOF.
func (st *stream) takeMessage(m any) error {
	c := st.c
	for {
		c.mu.Lock()
		st.idle = false
		if len(st.messages) > 0 {
			next := st.messages[0]
			if st.messages = st.messages[1:]; len(st.messages) == 0 {
				st.messages = nil
			}
			st.held -= next.size
			c.unread -= next.size
			c.giveStreamWindow(st)
			c.giveConnWindow()
			c.kick()
			c.mu.Unlock()
			return st.decode(next, m)
		}
		err := st.recvErr
		st.idle = err == nil && st.ctx.Err() == nil
		c.mu.Unlock()
		switch {
		case st.ctx.Err() != nil:
			return contextError(st.ctx.Err())
		case err == io.ErrUnexpectedEOF:
			return status.Error(codes.Internal, err.Error())
		case err != nil:
			return err
		}
		select {
		case <-st.recvWake:
		case <-st.ctx.Done():
		}
	}
}

// decode unpacks and reads a message.
func (st *stream) decode(in received, m any) (err error) {
	data := in.data
	defer func() { data.Free() }()
	switch {
	case in.compressed == 0:
	case in.compressed != 1:
		return status.Errorf(codes.Internal, "grpc: received unexpected payload format %d", in.compressed)
	case st.unpacker == nil:
		return status.Error(codes.Internal, "grpc: compressed flag set with identity or empty encoding")
	default:
		unpacked, err := unpack(st.unpacker, data, st.c.s.opts.MaxRecvBytes)
		if err != nil {
			return err
		}
		data.Free()
		data = unpacked
	}
	if err := st.c.s.opts.Codec.Unmarshal(data, m); err != nil {
		return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
	}
	return nil
}

// unpack decompresses a message of at most `most` bytes.
func unpack(z encoding.Compressor, data mem.BufferSlice, most int) (mem.BufferSlice, error) {
	in := data.Reader()
	defer in.Close()
	r, err := z.Decompress(in)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to decompress the message: %v", err)
	}
	if closer, ok := r.(io.Closer); ok {
		defer closer.Close()
	}
	if most < math.MaxInt {
		r = io.LimitReader(r, int64(most)+1)
	}
	out, err := mem.ReadAll(r, mem.DefaultBufferPool())
	if err != nil {
		out.Free()
		return nil, status.Errorf(codes.Internal, "grpc: failed to read decompressed data: %v", err)
	}
	if out.Len() > most {
		out.Free()
		return nil, status.Errorf(codes.ResourceExhausted, "grpc: received message after decompression larger than max %d", most)
	}
	return out, nil
}

// SendMsg is grpc.ServerStream's. It waits while the client takes nothing of the stream.
func (st *stream) SendMsg(m any) error {
	err := st.send(m)
	if err != nil {
		st.fail(err)
	}
	return err
}

func (st *stream) send(m any) error {
	o := &st.c.s.opts
	if d, ok := o.Codec.(DirectCodec); ok && st.packer == nil {
		if own, ok := d.Direct(m); ok {
			return st.sendDirect(own)
		}
	}
	data, err := o.Codec.Marshal(m)
	if err != nil {
		return status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	var prefix [prefixBytes]byte
	if st.packer != nil && data.Len() > 0 {
		packed, err := pack(st.packer, data)
		data.Free()
		if err != nil {
			return err
		}
		data, prefix[0] = packed, 1
	}
	if n := data.Len(); n > o.MaxSendBytes {
		data.Free()
		return tooLargeToSend(n, o.MaxSendBytes).Err()
	}
	binary.BigEndian.PutUint32(prefix[1:], uint32(data.Len()))
	if err := st.enqueue(prefix, data); err != nil {
		data.Free()
		return err
	}
	return nil
}

// sendDirect is send for a message that appends itself.
func (st *stream) sendDirect(m Message) error {
	n := m.Size()
	if most := st.c.s.opts.MaxSendBytes; n > most {
		return tooLargeToSend(n, most).Err()
	}
	var prefix [prefixBytes]byte
	binary.BigEndian.PutUint32(prefix[1:], uint32(n))
	if n > maxFrameBytes { // a long one, which is not encoded under the lock
		data := pooled(m, n)
		err := st.enqueue(prefix, data)
		if err != nil {
			data.Free()
		}
		return err
	}
	if err := st.beginSend(); err != nil {
		return err
	}
	c := st.c
	defer c.mu.Unlock()
	if st.fits(prefixBytes + n) {
		c.out = m.AppendTo(st.beginData(prefix, n))
	} else {
		c.message(st, prefix, pooled(m, n))
	}
	st.sent()
	return nil
}

// pooled is a message of n bytes in a buffer of the pool.
func pooled(m Message, n int) mem.BufferSlice {
	pool := mem.DefaultBufferPool()
	b := pool.Get(n)
	*b = m.AppendTo((*b)[:0])
	return mem.BufferSlice{mem.NewBuffer(b, pool)}
}

// enqueue waits for room and hands a message over. With an error, data is the caller's still.
func (st *stream) enqueue(prefix [prefixBytes]byte, data mem.BufferSlice) error {
	if err := st.beginSend(); err != nil {
		return err
	}
	defer st.c.mu.Unlock()
	st.c.message(st, prefix, data)
	st.sent()
	return nil
}

// beginSend waits until a message may be sent, and opens the answer. Unless it returns an error, it
// has taken mu.
func (st *stream) beginSend() error {
	c := st.c
	for {
		c.mu.Lock()
		if err := st.writable(); err != nil {
			c.mu.Unlock()
			return err
		}
		if st.queued <= queueLimit {
			break
		}
		c.mu.Unlock()
		select {
		case <-st.sendWake:
		case <-st.ctx.Done():
		}
	}
	if !st.headed && !c.head(st, st.header) {
		c.kick()
		c.mu.Unlock()
		return errHeaderListTooLarge
	}
	return nil
}

// sent has a message leave. REQUIRES: mu.
func (st *stream) sent() {
	if m := st.req.called; m.stream != nil && m.stream.ServerStreams {
		st.c.kick() // else the end of the call follows at once
	}
}

// writable is why nothing more can be sent; nil: it can. REQUIRES: mu.
func (st *stream) writable() error {
	switch {
	case st.c.stage == stageClosed:
		return status.Error(codes.Unavailable, "transport is closing")
	case st.ctx.Err() != nil:
		return contextError(st.ctx.Err())
	case st.closed || st.ending:
		return contextError(context.Canceled)
	}
	return nil
}

func pack(z encoding.Compressor, data mem.BufferSlice) (out mem.BufferSlice, err error) {
	w, err := z.Compress(mem.NewWriter(&out, mem.DefaultBufferPool()))
	for i := 0; err == nil && i < len(data); i++ {
		_, err = w.Write(data[i].ReadOnlyData())
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		out.Free()
		return nil, status.Errorf(codes.Internal, "grpc: error while compressing: %v", err)
	}
	return out, nil
}

var (
	errHeaderSent         = status.Error(codes.Internal, "transport: SendHeader called multiple times")
	errHeaderListTooLarge = status.Error(codes.Internal, "transport: trying to send header list size larger than the limit set by peer")
)

// SetHeader is grpc.ServerStream's.
func (st *stream) SetHeader(md metadata.MD) error {
	if len(md) == 0 {
		return nil
	}
	if err := validMetadata(md); err != nil {
		return err
	}
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.headed || st.closed {
		return errHeaderSent
	}
	st.header = metadata.Join(st.header, md)
	return nil
}

// SendHeader is grpc.ServerStream's.
func (st *stream) SendHeader(md metadata.MD) error {
	if err := validMetadata(md); err != nil {
		return err
	}
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := st.writable(); err != nil {
		return err
	}
	if st.headed {
		return errHeaderSent
	}
	sent := c.head(st, metadata.Join(st.header, md))
	c.kick()
	if !sent {
		return errHeaderListTooLarge
	}
	return nil
}

// SetTrailer is grpc.ServerStream's.
func (st *stream) SetTrailer(md metadata.MD) {
	if len(md) == 0 || validMetadata(md) != nil {
		return
	}
	st.c.mu.Lock()
	st.trailer = metadata.Join(st.trailer, md)
	st.c.mu.Unlock()
}

// validMetadata refuses what a client could not read.
func validMetadata(md metadata.MD) error {
	for k, values := range md {
		if k == "" {
			return status.Error(codes.Internal, "there is an empty key in the header")
		}
		if k[0] == ':' {
			continue
		}
		for i := range len(k) {
			if c := k[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
				return status.Errorf(codes.Internal, "header key %q contains illegal characters not in [0-9a-z-_.]", k)
			}
		}
		if strings.HasSuffix(k, binarySuffix) {
			continue
		}
		for _, v := range values {
			for i := range len(v) {
				if v[i] < 0x20 || v[i] > 0x7e {
					return status.Errorf(codes.Internal, "header key %q contains value with non-printable ASCII characters", k)
				}
			}
		}
	}
	return nil
}

// transportStream is what grpc.SetHeader and its like find in a handler's context.
type transportStream stream

func (t *transportStream) Method() string                  { return t.req.path }
func (t *transportStream) SetHeader(md metadata.MD) error  { return (*stream)(t).SetHeader(md) }
func (t *transportStream) SendHeader(md metadata.MD) error { return (*stream)(t).SendHeader(md) }
func (t *transportStream) SetTrailer(md metadata.MD) error { (*stream)(t).SetTrailer(md); return nil }

// SendCompress tells how messages must be handed over: as they are. They are packed later.
func (t *transportStream) SendCompress() string { return "" }
