package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	frameHeaderBytes = 9
	// maxFrameBytes is the largest payload that is taken: HTTP/2's default.
	maxFrameBytes = 16384
	// defaultWindow is HTTP/2's, of a stream and of a connection.
	defaultWindow = 65535
	// connWindow is what a client may have under way on all streams together.
	connWindow = 4 << 20
	// smallBuffer is what an idle connection reads into, and largeBuffer one that has much to say.
	smallBuffer, largeBuffer = 4 << 10, 32 << 10
	// quietReads is after how many reads that a small buffer would have held it is enough again.
	quietReads = 64
	maxWindow  = 1<<31 - 1
	// maxIdleFrames bounds the frames that ask for nothing, one after the other: settings,
	// priorities, empty DATA, unknown kinds.
	maxIdleFrames = 10000
	// continuationCost is what a CONTINUATION counts at least towards the bound of a block.
	continuationCost = 128
	// handshakeTimeout bounds how long a connection may take until its first settings.
	handshakeTimeout = 2 * time.Minute
	// lingerTime is how long what still comes is read after the last frame was sent: to close with
	// unread bytes would make the kernel reset the connection, and the client lose that frame.
	lingerTime = time.Second
)

// A conn is one connection. Its goroutines are a reader, which never waits for anything but the
// client; a writer, which waits for the client too; and the handlers of its calls. What they share
// lies under mu, which nobody holds while waiting.
type conn struct {
	s    *Server
	nc   net.Conn
	peer peer.Peer
	ctx  context.Context // of its calls: it has the peer, and does not end
	// ended is Options.Connected's; nil: nobody is told.
	ended func()

	lastRead atomic.Int64 // when bytes came, in ns since s.born

	mu sync.Mutex
	// streams are the open ones. A handler or a Hot may outlive its stream: it is an orphan then.
	streams map[uint32]*stream
	orphans int
	kept    keptCalls
	// late are the streams that this side closed last: the client may not know yet.
	late  [32]uint32
	lates int
	// maxID is that of the streams which the client has begun, and served of those that were looked
	// at. The reader alone writes them.
	maxID, served uint32
	stage         stage // it only grows
	settled       bool  // the client's first settings have come; written by the reader alone
	// ending is why the connection has ended, once it is stageClosed.
	ending error

	// What is written: see send.go.
	out        []byte
	outBuffer  *[]byte // where out lies; nil: out is empty
	wake       chan struct{}
	idleWriter bool
	reading    bool // the reader handles frames
	stalled    bool // the reader waits in stall
	stallWake  chan struct{}
	closeAfter bool // when out is written
	written    bool // all that is ever written: the writer has ended
	ready      streamList
	queued     int // bytes in the streams' queues
	sendWindow int64
	peerWindow int64 // of the client's new streams
	peerFrame  int
	// peerList bounds the headers that the client takes; 0: no bound.
	peerList uint32
	table    int  // our side of HPACK's: see answer.go
	shrunk   bool // the client must be told that it has size 0
	pingOwed bool // a frame of a call was sent: the client may ping

	room connRoom // what answers hold

	// What is received.
	recvWindow int64 // what the client may still send
	window     int64 // of a stream without a long message, as the client knows it
	unread     int64 // bytes of complete messages that no handler has taken
	long       longQueue

	// Keepalive: see keepalive.go.
	timer     *time.Timer // nil: not begun
	born      time.Time
	idleSince time.Time // the zero time: there are streams
	pinged    time.Time // of the server's ping without an answer; the zero time: none
	ageDue    time.Time // when max age is reached; the zero time: never, or it was
	graceDue  time.Time // when what is left of an aged connection is closed; the zero time: never
	drainDue  time.Time // when the second GOAWAY is sent at the latest; the zero time: not draining
	drainText string
}

// A reader handles a connection's frames. It belongs to its goroutine.
type reader struct {
	c *conn

	dec       *hpack.Decoder
	block     *request // whose fields are being read
	known     [4]knownBlock
	knownNext int
	// Of a block that goes on: its stream (0: none does), the bound that is left, and whether the
	// stream ends with it.
	blockID   uint32
	blockLeft int
	blockEnds bool
	idles     int // of maxIdleFrames
	prefaced  bool
	refused   int // calls that refuses refused, since the last pause
	lastPing  time.Time
	strikes   int
}

func newReader(c *conn) *reader {
	r := &reader{c: c}
	most := c.s.opts.MaxHeaderBytes
	r.dec = hpack.NewDecoder(headerTableBytes, func(f hpack.HeaderField) { r.block.add(f, most) })
	r.dec.SetMaxStringLength(most)
	return r
}

// headerTableBytes is HPACK's default for the table of either side.
const headerTableBytes = 4096

// stage is how far a connection has come.
type stage int

const (
	stageOpen     stage = iota
	stageDraining       // no new streams; it ends with the last one
	stageClosed
)

// knownBlock is a block that was decoded before.
type knownBlock struct {
	block []byte
	req   *request
}

// connError ends a connection with a GOAWAY.
type connError struct {
	code http2.ErrCode
	text string // for the client, as debug data
}

func (e connError) Error() string { return fmt.Sprintf("rpc: connection error %v %s", e.code, e.text) }

func protocolError(text string) error { return connError{http2.ErrCodeProtocol, text} }

func newConn(s *Server, nc net.Conn, p peer.Peer) *conn {
	c := &conn{
		s: s, nc: nc, peer: p, streams: make(map[uint32]*stream),
		wake: make(chan struct{}, 1), stallWake: make(chan struct{}, 1),
		sendWindow: defaultWindow, peerWindow: defaultWindow, peerFrame: maxFrameBytes,
		recvWindow: connWindow, window: defaultWindow, born: time.Now(),
	}
	c.idleSince = c.born
	c.kept.c, c.long.c, c.room.c = c, c, c
	c.ctx = peer.NewContext(context.Background(), &c.peer)
	if connected := s.opts.Connected; connected != nil {
		c.ctx, c.ended = connected(c.ctx)
	}
	return c
}

// serve runs the connection to its end. It returns when its goroutines but the handlers have ended.
func (c *conn) serve() {
	c.greet()
	written := make(chan struct{})
	go func() { c.write(); close(written) }()
	err := newReader(c).read()
	var ce connError
	if errors.As(err, &ce) {
		c.mu.Lock()
		c.goAway(c.served, ce.code, ce.text)
		c.closeAfter = true
		c.kick()
		c.mu.Unlock()
		c.linger(written)
	}
	c.close(err)
	<-written
}

// linger reads and drops what comes until the writer has ended, the client has, or for lingerTime.
func (c *conn) linger(written <-chan struct{}) {
	_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime)) // a failure shows at once below
	b := make([]byte, smallBuffer)
	for {
		if _, err := c.nc.Read(b); err != nil {
			return
		}
		select {
		case <-written:
			return
		default:
		}
	}
}

// greet puts our settings first. It is called before there is a writer.
func (c *conn) greet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.s.opts
	size := 6
	if o.MaxStreams != 0 {
		size += 6
	}
	if o.StreamWindow != defaultWindow {
		size += 6
	}
	b := appendFrame(c.buffer(), size, http2.FrameSettings, 0, 0)
	if o.MaxStreams != 0 {
		b = appendSetting(b, http2.SettingMaxConcurrentStreams, o.MaxStreams)
	}
	if o.StreamWindow != defaultWindow {
		b = appendSetting(b, http2.SettingInitialWindowSize, uint32(o.StreamWindow))
	}
	b = appendSetting(b, http2.SettingMaxHeaderListSize, uint32(o.MaxHeaderBytes))
	b = appendFrame(b, 4, http2.FrameWindowUpdate, 0, 0)
	c.out = binary.BigEndian.AppendUint32(b, connWindow-defaultWindow)
}

func appendSetting(b []byte, id http2.SettingID, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, uint16(id)), v)
}

// close ends the connection at once, with all its streams. Any goroutine; a second call does
// nothing.
func (c *conn) close(cause error) {
	c.mu.Lock()
	if c.stage == stageClosed {
		c.mu.Unlock()
		return
	}
	c.stage, c.ending = stageClosed, cause
	for _, st := range c.streams {
		c.closeStream(st)
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	c.kick()
	signal(c.stallWake)
	c.mu.Unlock()
	if c.ended != nil {
		c.ended()
	}
	_ = c.nc.Close() // it is gone either way
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

var largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}

// read is the reader: it handles frames until the connection ends.
func (r *reader) read() error {
	c := r.c
	small := make([]byte, smallBuffer)
	buf := small
	var large *[]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	quiet, have := 0, 0
	for {
		if err := c.stall(); err != nil {
			return err
		}
		if r.refused >= manyRefused { // what comes meanwhile waits at the client
			r.refused = 0
			time.Sleep(refusedPause)
		}
		space := len(buf) - have
		n, err := c.nc.Read(buf[have:])
		if n > 0 {
			c.lastRead.Store(int64(time.Since(c.s.born)))
			have += n
			r.setReading(true)
			rest, ferr := r.frames(buf[:have])
			have = copy(buf, rest)
			r.setReading(false)
			if ferr != nil {
				return ferr
			}
		}
		if err != nil {
			return err
		}
		switch {
		case large == nil && n == space: // there may be more, or a frame that is longer
			large = largeBuffers.Get().(*[]byte)
			copy(*large, buf[:have])
			buf, quiet = *large, 0
		case large != nil && n >= smallBuffer:
			quiet = 0
		case large != nil && have == 0:
			if quiet++; quiet == quietReads {
				largeBuffers.Put(large)
				buf, large = small, nil
			}
		}
	}
}

// setReading brackets what the reader does with what it has read.
func (r *reader) setReading(on bool) {
	c := r.c
	c.mu.Lock()
	c.reading = on
	c.kick()
	c.mu.Unlock()
}

func payloadOf(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }

// streamOf is the stream of a frame.
func streamOf(b []byte) uint32 { return binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1) }

// frames handles the complete frames that b begins with and returns what follows them.
func (r *reader) frames(b []byte) ([]byte, error) {
	if !r.prefaced {
		n := min(len(b), len(http2.ClientPreface))
		if !bytes.Equal(b[:n], []byte(http2.ClientPreface)[:n]) {
			return b, io.EOF // not HTTP/2: nothing that we say would be understood
		}
		if n < len(http2.ClientPreface) {
			return b, nil
		}
		r.prefaced = true
		b = b[n:]
	}
	for len(b) >= frameHeaderBytes {
		size := payloadOf(b)
		if size > maxFrameBytes {
			return b, connError{http2.ErrCodeFrameSize, "frame too large"}
		}
		if len(b) < frameHeaderBytes+size {
			break
		}
		if err := r.frame(http2.FrameType(b[3]), http2.Flags(b[4]), streamOf(b), b[frameHeaderBytes:frameHeaderBytes+size]); err != nil {
			return b, err
		}
		b = b[frameHeaderBytes+size:]
	}
	return b, nil
}

// frame handles one frame. p is the reader's buffer: what is kept of it is copied.
func (r *reader) frame(kind http2.FrameType, flags http2.Flags, id uint32, p []byte) error {
	c := r.c
	if r.blockID != 0 && (kind != http2.FrameContinuation || id != r.blockID) {
		return protocolError("a header block was not completed")
	}
	if !c.settled {
		if kind != http2.FrameSettings || flags.Has(http2.FlagSettingsAck) {
			return protocolError("the first frame is not SETTINGS")
		}
		c.mu.Lock()
		c.settled = true
		if !c.closeAfter { // then the deadline is that of lingering
			_ = c.nc.SetReadDeadline(time.Time{}) // a failure shows in the next read
		}
		c.mu.Unlock()
	}
	switch kind {
	case http2.FrameData:
		return r.data(flags, id, p)
	case http2.FrameHeaders:
		return r.headers(flags, id, p)
	case http2.FrameContinuation:
		if r.blockID == 0 {
			return protocolError("CONTINUATION without HEADERS")
		}
		return r.fragment(p, flags.Has(http2.FlagContinuationEndHeaders), len(p)+continuationCost)
	case http2.FrameRSTStream:
		return r.resetByClient(id, p)
	case http2.FrameWindowUpdate:
		return r.windowUpdate(id, p)
	case http2.FramePing:
		return r.ping(flags, id, p)
	}
	if r.idles++; r.idles > maxIdleFrames {
		return connError{http2.ErrCodeEnhanceYourCalm, "too many frames that ask for nothing"}
	}
	switch kind {
	case http2.FrameSettings:
		return r.settings(flags, id, p)
	case http2.FramePriority:
		return r.priority(id, p)
	case http2.FrameGoAway:
		if id != 0 {
			return protocolError("GOAWAY on a stream")
		}
		if len(p) < 8 {
			return connError{http2.ErrCodeFrameSize, "GOAWAY"}
		}
	case http2.FramePushPromise:
		return protocolError("PUSH_PROMISE of a client")
	}
	return nil
}

func (r *reader) priority(id uint32, p []byte) error {
	c := r.c
	switch {
	case id == 0:
		return protocolError("PRIORITY on stream 0")
	case len(p) != 5:
		return connError{http2.ErrCodeFrameSize, "PRIORITY"}
	case binary.BigEndian.Uint32(p)&(1<<31-1) == id:
		c.mu.Lock()
		c.resetUnknown(id, http2.ErrCodeProtocol)
		c.mu.Unlock()
	}
	return nil
}

// idle reports whether there never was such a stream: the client has not begun it, or could not, as
// those with even ids are ours, and we begin none.
func (r *reader) idle(id uint32) bool { return id&1 == 0 || id > r.c.maxID }

// unpadded is a payload without its padding.
func unpadded(flags http2.Flags, p []byte) ([]byte, error) {
	if !flags.Has(http2.FlagDataPadded) {
		return p, nil
	}
	if len(p) < 1 || int(p[0]) > len(p)-1 {
		return nil, protocolError("padding as long as the frame")
	}
	return p[1 : len(p)-int(p[0])], nil
}

// headers begins a stream, or ends one with trailers.
func (r *reader) headers(flags http2.Flags, id uint32, p []byte) error {
	c := r.c
	if id&1 == 0 {
		return protocolError("a stream of the client with an even id")
	}
	p, err := unpadded(flags, p)
	if err != nil {
		return err
	}
	selfish := false
	if flags.Has(http2.FlagHeadersPriority) {
		if len(p) < 5 {
			return connError{http2.ErrCodeFrameSize, "HEADERS"}
		}
		selfish = binary.BigEndian.Uint32(p)&(1<<31-1) == id
		p = p[5:]
	}
	r.blockID, r.blockEnds = id, flags.Has(http2.FlagHeadersEndStream)
	r.blockLeft = c.s.opts.MaxHeaderBytes
	whole := flags.Has(http2.FlagHeadersEndHeaders)
	if whole && !selfish {
		if req := r.lookUp(p); req != nil {
			r.blockID = 0
			return r.begin(id, req, r.blockEnds)
		}
	}
	r.block = &request{contentLength: -1, md: make(map[string][]string, 8), malformed: selfish}
	return r.fragment(p, whole, len(p))
}

// indexed reports whether a block is nothing but one-byte indexes of HPACK's tables. Such a block
// means the same as the last time, unless the dynamic table has changed in between.
func indexed(block []byte) bool {
	if len(block) > maxKnownBlock {
		return false
	}
	for _, b := range block {
		if b <= 0x80 || b == 0xff {
			return false
		}
	}
	return true
}

// maxKnownBlock is how long a block may be that is remembered, in bytes.
const maxKnownBlock = 32

// mayChange reports whether a block may change the dynamic table. It does when a field begins with
// 01xxxxxx or 001xxxxx; to find where fields begin means to parse, so any byte counts.
func mayChange(block []byte) bool {
	for _, b := range block {
		if b&0xc0 == 0x40 || b&0xe0 == 0x20 {
			return true
		}
	}
	return false
}

// lookUp returns what a block is known to mean, or nil.
func (r *reader) lookUp(block []byte) *request {
	for i := range r.known {
		if k := &r.known[i]; k.req != nil && bytes.Equal(k.block, block) {
			return k.req
		}
	}
	return nil
}

// fragment takes a part of a block; last: the block ends with it. cost counts towards its bound.
func (r *reader) fragment(p []byte, last bool, cost int) error {
	c := r.c
	if r.blockLeft -= cost; r.blockLeft < 0 {
		return connError{http2.ErrCodeEnhanceYourCalm, "header block too large"}
	}
	if _, err := r.dec.Write(p); err != nil {
		return connError{http2.ErrCodeCompression, ""}
	}
	if mayChange(p) {
		for i := range r.known {
			r.known[i].req = nil
		}
	}
	if !last {
		return nil
	}
	if err := r.dec.Close(); err != nil {
		return connError{http2.ErrCodeCompression, ""}
	}
	id, req := r.blockID, r.block
	r.blockID, r.block = 0, nil
	if id <= c.maxID {
		return r.trailers(id, req)
	}
	req.seal()
	if c.s.opts.anyRequest {
		req.refusal = nil
	}
	req.called = c.s.lookUp(req.path)
	req.ctx = metadata.NewIncomingContext(c.ctx, req.md)
	if cost == len(p) && !req.malformed && indexed(p) { // it came in one piece
		k := &r.known[r.knownNext%len(r.known)]
		r.knownNext++
		k.block, k.req = append(k.block[:0], p...), req
	}
	return r.begin(id, req, r.blockEnds)
}

// trailers ends the client's side of a stream. What they say nobody asks for.
func (r *reader) trailers(id uint32, req *request) error {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.streams[id]
	switch {
	case st == nil && slices.Contains(c.late[:], id):
		return nil
	case st == nil, st.recvDone:
		return connError{http2.ErrCodeStreamClosed, "HEADERS on a closed stream"}
	case !r.blockEnds || req.malformed || req.hasMethod || req.hasPath || req.scheme || req.hasAuthority:
		c.reset(st, http2.ErrCodeProtocol)
		return nil
	}
	c.endReceiving(st)
	return nil
}

// begin opens a stream for a request.
func (r *reader) begin(id uint32, req *request, ends bool) error {
	c := r.c
	if id <= c.maxID {
		return r.trailers(id, req)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.maxID = id
	if c.stage != stageOpen {
		c.closedHere(id)
		return nil // the GOAWAY says that it is not served
	}
	c.served = id
	full := c.s.opts.MaxStreams
	switch {
	case req.malformed:
		c.resetUnknown(id, http2.ErrCodeProtocol)
		return nil
	case req.truncated:
		c.resetUnknown(id, http2.ErrCodeFrameSize)
		return nil
	case req.refusal != nil && req.refusal.httpStatus != http.StatusMethodNotAllowed:
		c.refuse(id, req.subtype, req.refusal, !ends)
		return nil
	case c.room.refuses():
		r.refused++
		c.resetUnknown(id, http2.ErrCodeRefusedStream)
		return nil
	case full != 0 && uint32(len(c.streams)) >= full, c.orphans >= maxOrphans:
		c.resetUnknown(id, http2.ErrCodeRefusedStream)
		return nil
	case req.refusal != nil:
		c.refuse(id, req.subtype, req.refusal, !ends)
		return nil
	}
	if tap := c.s.opts.Tap; tap != nil {
		if err := tap(c.ctx, req.path); err != nil {
			st, ok := status.FromError(err)
			if !ok {
				st = status.New(codes.PermissionDenied, err.Error())
			}
			c.refuse(id, req.subtype, &refusal{http.StatusOK, st.Code(), st.Message()}, !ends)
			return nil
		}
	}
	if req.timed && req.timeout <= 0 {
		c.refuse(id, req.subtype, &refusal{http.StatusOK, codes.DeadlineExceeded, context.DeadlineExceeded.Error()}, !ends)
		return nil
	}
	st := &stream{
		c: c, id: id, req: req, sendWindow: c.peerWindow, recvWindow: c.window, contentLeft: req.contentLength, cause: context.Canceled,
	}
	st.room.st = st
	if req.timed {
		st.deadline = time.Now().Add(req.timeout)
	}
	c.streams[id] = st
	c.idleSince = time.Time{}
	if req.called == nil {
		st.recvDone = ends
		c.finish(st, status.New(codes.Unimplemented, c.s.unknown(req.path)), nil)
		return nil
	}
	if req.called.hot != nil && (req.encoding == "" || req.encoding == encoding.Identity) {
		st.hot = true
		if req.timed {
			c.kept.expect(st.deadline)
		}
	} else {
		st.start()
	}
	if ends {
		c.endReceiving(st)
	}
	return nil
}

// hotQueueLimit bounds the answers that wait for a client's windows, in bytes, while further messages
// are answered by a HotMessage, which waits for nobody.
const hotQueueLimit = 4 << 20

// maxOrphans is how many handlers may run whose streams are closed. A client that resets its calls
// as soon as it has made them does not get around the bound of streams so.
const maxOrphans = 1000

// data takes a part of a request.
func (r *reader) data(flags http2.Flags, id uint32, p []byte) error {
	whole := int64(len(p))
	p, err := unpadded(flags, p)
	if err != nil {
		return err
	}
	ends := flags.Has(http2.FlagDataEndStream)
	if len(p) == 0 && !ends {
		if r.idles++; r.idles > maxIdleFrames {
			return connError{http2.ErrCodeEnhanceYourCalm, "too many frames that ask for nothing"}
		}
	} else {
		r.idles = 0
	}
	if r.idle(id) {
		return protocolError("DATA on an idle stream")
	}
	st, err := r.take(id, p, whole, ends)
	if st == nil || err != nil {
		return err
	}
	if !st.taken {
		st.answerMessage(p)
		return nil
	}
	message := p[prefixBytes:]
	if call := (*Call)(st); !st.req.called.hot(call, message) {
		call.Delegate(bytes.Clone(message))
	}
	return nil
}

// take takes p, of a frame of `whole` bytes, for its stream. The result is nil, or a stream that has
// not got it: its request is complete with it and a Hot has taken it, or a HotMessage may answer it.
func (r *reader) take(id uint32, p []byte, whole int64, ends bool) (hot *stream, err error) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recvWindow -= whole; c.recvWindow < 0 {
		return nil, connError{http2.ErrCodeFlowControl, "the connection's window is exceeded"}
	}
	c.giveConnWindow()
	st := c.streams[id]
	if st == nil {
		if !slices.Contains(c.late[:], id) {
			c.resetUnknown(id, http2.ErrCodeStreamClosed)
		}
		return nil, nil
	}
	if st.recvDone {
		c.reset(st, http2.ErrCodeStreamClosed)
		return nil, nil
	}
	if st.recvWindow -= whole; st.recvWindow < 0 {
		c.reset(st, http2.ErrCodeFlowControl)
		return nil, nil
	}
	if st.contentLeft >= 0 {
		if st.contentLeft -= int64(len(p)); st.contentLeft < 0 || ends && st.contentLeft > 0 {
			c.reset(st, http2.ErrCodeProtocol)
			return nil, nil
		}
	}
	if st.hot {
		if ends && wholeMessage(p, c.s.opts.MaxRecvBytes) {
			st.hot, st.taken = false, true
			c.endReceiving(st)
			return st, nil
		}
		st.begin()
	}
	if st.idleFor(p, ends) {
		return st, nil
	}
	st.receive(p)
	if ends {
		c.endReceiving(st)
		return nil, nil
	}
	c.giveStreamWindow(st)
	return nil, nil
}

// endReceiving is the client's end of a stream. REQUIRES: mu.
func (c *conn) endReceiving(st *stream) {
	if st.contentLeft > 0 {
		c.reset(st, http2.ErrCodeProtocol)
		return
	}
	st.begin()
	st.recvDone = true
	c.long.complete(st)
	if st.recvErr == nil {
		st.recvErr = io.EOF
		if st.prefixs > 0 {
			st.recvErr = io.ErrUnexpectedEOF
		}
	}
	st.pieces.Free()
	st.pieces, st.whole = nil, nil
	signal(st.recvWake)
}

// giveConnWindow gives the connection's window back as bytes arrive, so that a stream that nobody
// reads delays no other, unless too much lies unread. REQUIRES: mu.
func (c *conn) giveConnWindow() {
	if c.recvWindow > connWindow/2 || c.unread > receiveBudget {
		return
	}
	c.windowFrame(0, uint32(connWindow-c.recvWindow))
	c.recvWindow = connWindow
}

// receiveBudget bounds, for each connection, the complete messages that no handler has taken, in
// bytes. Beyond it the client waits.
const receiveBudget = 32 << 20

func (c *conn) windowFrame(id, n uint32) {
	b := appendFrame(c.buffer(), 4, http2.FrameWindowUpdate, 0, id)
	c.out = binary.BigEndian.AppendUint32(b, n)
}

// resetByClient is a RST_STREAM.
func (r *reader) resetByClient(id uint32, p []byte) error {
	c := r.c
	if r.idle(id) {
		return protocolError("RST_STREAM on an idle stream")
	}
	if len(p) != 4 {
		return connError{http2.ErrCodeFrameSize, "RST_STREAM"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if st := c.streams[id]; st != nil {
		c.closeStream(st)
	}
	if i := slices.Index(c.late[:], id); i >= 0 {
		c.late[i] = 0 // the client knows
	}
	return nil
}

// windowUpdate opens a window of ours.
func (r *reader) windowUpdate(id uint32, p []byte) error {
	c := r.c
	if len(p) != 4 {
		return connError{http2.ErrCodeFrameSize, "WINDOW_UPDATE"}
	}
	n := int64(binary.BigEndian.Uint32(p) & (1<<31 - 1))
	if id != 0 && r.idle(id) {
		return protocolError("WINDOW_UPDATE on an idle stream")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		if n == 0 {
			return protocolError("WINDOW_UPDATE of 0")
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return connError{http2.ErrCodeFlowControl, "the connection's window is too large"}
		}
		return nil
	}
	st := c.streams[id]
	switch {
	case n == 0 && st == nil:
		c.resetUnknown(id, http2.ErrCodeProtocol)
	case n == 0:
		c.reset(st, http2.ErrCodeProtocol)
	case st == nil:
	default:
		if st.sendWindow += n; st.sendWindow > maxWindow {
			c.reset(st, http2.ErrCodeFlowControl)
			return nil
		}
		c.makeReady(st)
	}
	return nil
}

// settings takes the client's.
func (r *reader) settings(flags http2.Flags, id uint32, p []byte) error {
	c := r.c
	if id != 0 {
		return protocolError("SETTINGS on a stream")
	}
	if flags.Has(http2.FlagSettingsAck) {
		if len(p) != 0 {
			return connError{http2.ErrCodeFrameSize, "SETTINGS"}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.windowKnown()
		return nil
	}
	if len(p)%6 != 0 {
		return connError{http2.ErrCodeFrameSize, "SETTINGS"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	window := c.peerWindow
	for ; len(p) > 0; p = p[6:] {
		id, v := http2.SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])
		if id == http2.SettingInitialWindowSize && v <= maxWindow {
			window = int64(v) // the last one counts: see setWindows
		} else if err := r.setting(id, v); err != nil {
			return err
		}
	}
	if err := r.setWindows(window); err != nil {
		return err
	}
	c.out = appendFrame(c.buffer(), 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	return nil
}

// setWindows changes the windows of all streams to what the client's settings say. A frame has room
// for 2,730 of them, so that is done once for each frame: nothing can be sent in between. REQUIRES: mu.
func (r *reader) setWindows(initial int64) error {
	c := r.c
	delta := initial - c.peerWindow
	if delta == 0 {
		return nil
	}
	c.peerWindow = initial
	for _, st := range c.streams {
		if st.sendWindow += delta; st.sendWindow > maxWindow {
			return connError{http2.ErrCodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE"}
		}
		c.makeReady(st)
	}
	return nil
}

// setting applies one but for windows. REQUIRES: mu.
func (r *reader) setting(id http2.SettingID, v uint32) error {
	c := r.c
	switch id {
	case http2.SettingHeaderTableSize:
		if v < headerTableBytes && c.table != tableNone {
			c.table, c.shrunk = tableNone, true
		}
	case http2.SettingEnablePush:
		if v > 1 {
			return protocolError("SETTINGS_ENABLE_PUSH")
		}
	case http2.SettingInitialWindowSize:
		return connError{http2.ErrCodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE"} // it is beyond maxWindow
	case http2.SettingMaxFrameSize:
		if v < maxFrameBytes || v > 1<<24-1 {
			return protocolError("SETTINGS_MAX_FRAME_SIZE")
		}
		c.peerFrame = int(min(v, maxSendFrame))
	case http2.SettingMaxHeaderListSize:
		c.peerList = v
	}
	return nil
}

// maxSendFrame is the largest frame that is sent to a client that takes larger ones: one stream
// must not keep the others waiting.
const maxSendFrame = 64 << 10

// reset ends a stream from this side with an error. REQUIRES: mu.
func (c *conn) reset(st *stream, code http2.ErrCode) {
	c.resetUnknown(st.id, code)
	c.closeStream(st)
}

// resetUnknown sends a RST_STREAM. REQUIRES: mu.
func (c *conn) resetUnknown(id uint32, code http2.ErrCode) {
	c.resetFrame(id, code)
	c.closedHere(id)
}

func (c *conn) resetFrame(id uint32, code http2.ErrCode) {
	b := appendFrame(c.buffer(), 4, http2.FrameRSTStream, 0, id)
	c.out = binary.BigEndian.AppendUint32(b, uint32(code))
}

// closedHere remembers a stream of which the client does not know yet that it is closed.
func (c *conn) closedHere(id uint32) {
	c.late[c.lates%len(c.late)] = id
	c.lates++
}

// closeStream forgets a stream and ends its context; its handler may run on. REQUIRES: mu.
func (c *conn) closeStream(st *stream) {
	if st.closed {
		return
	}
	st.closed = true
	delete(c.streams, st.id)
	c.long.forget(st)
	if st.granted > 0 && !st.recvDone {
		c.long.late = true // it was given a window for nothing
	}
	if !st.running {
		c.long.ungrant(st)
	}
	st.dropReceived()
	st.dropQueue()
	if st.ready {
		st.ready = false
		c.ready.remove(st)
	}
	if st.running || st.taken {
		st.orphan = true
		c.orphans++
	}
	if st.ender != nil {
		c.kept.tell(st)
	}
	if st.cancel != nil {
		st.cancel()
	}
	st.room.close() // a handler that waited for room finds its context at an end
	signal(st.recvWake)
	signal(st.sendWake)
	if len(c.streams) == 0 {
		c.idleSince = time.Now()
		if c.stage == stageDraining {
			c.closeAfter = true
		}
	}
}

// goAway announces the end. REQUIRES: mu.
func (c *conn) goAway(last uint32, code http2.ErrCode, text string) {
	b := appendFrame(c.buffer(), 8+len(text), http2.FrameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	c.out = append(b, text...)
}

// refuse answers a request that no handler sees. REQUIRES: mu.
func (c *conn) refuse(id uint32, subtype string, r *refusal, open bool) {
	fields := r.fields(subtype)
	if open {
		c.closedHere(id)
	}
	if c.peerList != 0 && listBytes(fields) > int64(c.peerList) {
		c.resetFrame(id, http2.ErrCodeInternal)
		return
	}
	b, at := c.beginBlock(c.buffer(), id, http2.FlagHeadersEndStream)
	for _, f := range fields {
		b = appendField(b, f.Name, f.Value)
	}
	c.out = c.endBlock(b, at)
	if open { // the client need not go on
		c.resetFrame(id, http2.ErrCodeNo)
	}
}

// fields are those of a refusal as an answer.
func (r *refusal) fields(subtype string) []hpack.HeaderField {
	contentType := baseContentType
	if subtype != "" {
		contentType += "+" + subtype
	}
	return []hpack.HeaderField{
		{Name: ":status", Value: strconv.Itoa(r.httpStatus)},
		{Name: "content-type", Value: contentType},
		{Name: "grpc-status", Value: strconv.Itoa(int(r.code))},
		{Name: "grpc-message", Value: percentEncoded(r.text)},
	}
}

// A received message, as it came.
type received struct {
	compressed byte // its flag: 0 or 1, anything else is an error
	data       mem.BufferSlice
	size       int64 // with its prefix
}
