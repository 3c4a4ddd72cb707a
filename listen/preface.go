package listen

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	frameHeaderBytes = 9
	// maxFrameBytes is the largest frame that a peer may send by default.
	maxFrameBytes = 16 << 10
	// maxPrefaceBytes bounds what is kept before the first request's headers are complete; a client
	// with more goes to net/http, which refuses it.
	maxPrefaceBytes = 256 << 10
)

const (
	// maxIdleBytes bounds what a client may send before its first request, and each of its frames:
	// settings, window updates, priorities. It costs this much as long as the connection is idle,
	// which may be for ever.
	maxIdleBytes = 4 << 10
	// maxPingStrikes is how many excess pings a client may send before its first request, and
	// pingInterval how far apart pings are allowed: as in grpc's server for connections without a
	// call.
	maxPingStrikes = 2
	pingInterval   = 2 * time.Hour
)

// errTooManyPings is a client that keeps the server busy without a request.
var errTooManyPings = errors.New("too_many_pings")

// errNotHTTP2 is a client that agreed to HTTP/2 and speaks something else.
var errNotHTTP2 = errors.New("listen: the client does not speak HTTP/2")

// prefacedConn is a TLS connection whose first bytes were read to learn its protocol: it returns
// them again, and removes the client's acknowledgement of the SETTINGS that were sent on the
// server's behalf.
type prefacedConn struct {
	*tls.Conn
	in     io.Reader // Conn
	head   []byte    // read already
	ackDue bool      // the acknowledgement is still to come, so frames are followed
	left   int       // bytes of the current frame that are to be passed on, if ackDue

	prelude *prelude // that head counts for while it grows
}

// sendSettings writes the server's first SETTINGS frame, for clients that wait for it. Only the
// number of streams must not be promised too large: the server itself would correct it too late.
func sendSettings(conn *tls.Conn, maxStreams uint32) error {
	var settings []byte
	if maxStreams > 0 && maxStreams < math.MaxUint32 {
		settings = binary.BigEndian.AppendUint16(nil, uint16(http2.SettingMaxConcurrentStreams))
		settings = binary.BigEndian.AppendUint32(settings, maxStreams)
	}
	return writeFrame(conn, http2.FrameSettings, 0, settings)
}

func writeFrame(conn *tls.Conn, kind http2.FrameType, flags http2.Flags, payload []byte) error {
	frame := []byte{0, 0, byte(len(payload)), byte(kind), byte(flags), 0, 0, 0, 0}
	_, err := conn.Write(append(frame, payload...))
	return err
}

// readPreface reads until the first request's headers are complete, and reports whether it is a
// gRPC call. A connection may wait for its first request for ever: gRPC clients connect before they
// have one. Until then it answers pings.
func readPreface(conn *tls.Conn, maxStreams uint32, p *prelude) (c *prefacedConn, isGRPC bool, err error) {
	if err := conn.SetDeadline(time.Now().Add(sniffTimeout)); err != nil {
		return nil, false, err
	}
	if err := sendSettings(conn, maxStreams); err != nil {
		return nil, false, err
	}
	c = &prefacedConn{Conn: conn, in: conn, ackDue: true, prelude: p}
	c.head = make([]byte, len(http2.ClientPreface), 512)
	if _, err := io.ReadFull(conn, c.head); err != nil {
		return nil, false, err
	}
	if string(c.head) != http2.ClientPreface {
		return nil, false, errNotHTTP2
	}
	strikes, last := 0, time.Time{}
	isGRPC, err = c.readUntilHeaders(func(ping []byte) error {
		now := time.Now()
		if now.Sub(last) < pingInterval {
			strikes++
		}
		last = now
		if strikes > maxPingStrikes {
			return errTooManyPings
		}
		if err := conn.SetWriteDeadline(time.Now().Add(sniffTimeout)); err != nil {
			return err
		}
		return writeFrame(conn, http2.FramePing, http2.FlagPingAck, ping)
	})
	if errors.Is(err, errTooManyPings) {
		// GOAWAY for stream 0, ENHANCE_YOUR_CALM, with the reason that grpc's clients know.
		goAway := binary.BigEndian.AppendUint32(make([]byte, 4, 32), uint32(http2.ErrCodeEnhanceYourCalm))
		if deadlineErr := conn.SetWriteDeadline(time.Now().Add(sniffTimeout)); deadlineErr == nil {
			_ = writeFrame(conn, http2.FrameGoAway, 0, append(goAway, errTooManyPings.Error()...)) // the connection ends either way
		}
	}
	if err != nil {
		return nil, false, err
	}
	return c, isGRPC, conn.SetDeadline(time.Time{})
}

// readUntilHeaders collects frames in head up to the end of the first header block, and reports
// whether they come from a gRPC client. answer is called for each ping.
func (c *prefacedConn) readUntilHeaders(answer func(ping []byte) error) (isGRPC bool, err error) {
	var block []span // of head: the header block as far as read
	inBlock := false
	for first := true; ; first = false {
		at := len(c.head)
		kind, flags, payload, err := c.readFrame()
		if err != nil {
			return false, err
		}
		if first {
			if kind != http2.FrameSettings || flags.Has(http2.FlagSettingsAck) {
				return false, errNotHTTP2
			}
			// It speaks HTTP/2 properly, so it has time from here on.
			if err := c.SetReadDeadline(time.Time{}); err != nil {
				return false, err
			}
		}
		switch {
		case inBlock != (kind == http2.FrameContinuation):
			return false, errNotHTTP2
		case kind == http2.FrameSettings && flags.Has(http2.FlagSettingsAck):
			if !c.ackDue {
				return false, errNotHTTP2 // a SETTINGS frame must be acknowledged
			}
			c.head = c.head[:at]
			c.ackDue = false
		case kind == http2.FramePing:
			if flags.Has(http2.FlagPingAck) {
				return false, errNotHTTP2 // there is no request
			}
			if err := answer(payload); err != nil {
				return false, err
			}
			c.head = c.head[:at]
		case kind == http2.FrameGoAway:
			return false, io.EOF
		case kind == http2.FrameHeaders:
			from, to, err := headerBlock(flags, payload)
			if err != nil {
				return false, err
			}
			at += frameHeaderBytes
			block, inBlock = append(block, span{at + from, at + to}), true
		case kind == http2.FrameContinuation:
			block = append(block, span{at + frameHeaderBytes, len(c.head)})
		}
		if inBlock && flags.Has(http2.FlagHeadersEndHeaders) {
			return c.fromGRPCClient(block)
		}
		c.prelude.hold(int64(cap(c.head) + cap(block)*spanBytes))
		if !inBlock && len(c.head) > len(http2.ClientPreface)+maxIdleBytes {
			return false, fmt.Errorf("%w: more than %d bytes before a request", errNotHTTP2, maxIdleBytes)
		}
		if len(c.head) > maxPrefaceBytes {
			return false, nil
		}
	}
}

// span is a piece of a prefacedConn's head, which may move while it grows.
type span struct{ from, to int }

const spanBytes = 16

// readFrame appends the next frame to head and returns its parts; payload aliases head.
func (c *prefacedConn) readFrame() (http2.FrameType, http2.Flags, []byte, error) {
	at := len(c.head)
	c.head = append(c.head, make([]byte, frameHeaderBytes)...)
	if _, err := io.ReadFull(c.in, c.head[at:]); err != nil {
		return 0, 0, nil, err
	}
	size := payloadBytes(c.head[at:])
	kind, flags := http2.FrameType(c.head[at+3]), http2.Flags(c.head[at+4])
	if size > maxFrameBytes || kind == http2.FramePing && size != 8 {
		return 0, 0, nil, fmt.Errorf("%w: a frame of %d bytes", errNotHTTP2, size)
	}
	switch kind {
	case http2.FrameHeaders, http2.FrameContinuation:
		// From here on there is a deadline again: a request that has begun takes memory.
		if err := c.SetReadDeadline(time.Now().Add(sniffTimeout)); err != nil {
			return 0, 0, nil, err
		}
	default:
		if size > maxIdleBytes {
			return 0, 0, nil, fmt.Errorf("%w: a frame of %d bytes before a request", errNotHTTP2, size)
		}
	}
	at = len(c.head)
	c.head = append(c.head, make([]byte, size)...)
	c.prelude.hold(int64(cap(c.head)))
	if _, err := io.ReadFull(c.in, c.head[at:]); err != nil {
		return 0, 0, nil, err
	}
	return kind, flags, c.head[at:], nil
}

func payloadBytes(header []byte) int {
	return int(header[0])<<16 | int(header[1])<<8 | int(header[2])
}

// headerBlock returns where the header block is in the payload of a HEADERS frame, without padding
// and priority.
func headerBlock(flags http2.Flags, payload []byte) (from, to int, err error) {
	to = len(payload)
	if flags.Has(http2.FlagHeadersPadded) {
		if len(payload) < 1 {
			return 0, 0, errNotHTTP2
		}
		from, to = 1, to-int(payload[0])
	}
	if flags.Has(http2.FlagHeadersPriority) {
		from += 5
	}
	if from > to {
		return 0, 0, errNotHTTP2
	}
	return from, to, nil
}

// fromGRPCClient reports whether a first request's headers are a gRPC call, and not one from a
// proxy: a proxy may send other requests on the same connection, so net/http takes that one and
// passes on the calls among them.
func (c *prefacedConn) fromGRPCClient(block []span) (bool, error) {
	call, passedOn := false, false
	d := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		switch {
		case f.Name == "content-type":
			call = strings.Contains(f.Value, "application/grpc")
		case f.Name == "via" || f.Name == "forwarded" || strings.HasPrefix(f.Name, "x-forwarded-") || strings.HasPrefix(f.Name, "x-envoy-") || f.Name == "x-real-ip":
			passedOn = true
		}
	})
	d.SetMaxStringLength(maxPrefaceBytes)
	var whole []byte
	for _, s := range block {
		whole = append(whole, c.head[s.from:s.to]...)
	}
	if _, err := d.Write(whole); err != nil {
		return false, err
	}
	return call && !passedOn, d.Close()
}

// Read returns what was read already, then what follows, without the one acknowledgement.
func (c *prefacedConn) Read(p []byte) (int, error) {
	for {
		if len(c.head) > 0 {
			n := copy(p, c.head)
			if c.head = c.head[n:]; len(c.head) == 0 {
				c.head = nil // free it
			}
			return n, nil
		}
		if !c.ackDue {
			return c.in.Read(p)
		}
		if c.left > 0 {
			n, err := c.in.Read(p[:min(len(p), c.left)])
			c.left -= n
			return n, err
		}
		if len(p) == 0 {
			return 0, nil
		}
		header := make([]byte, frameHeaderBytes)
		if _, err := io.ReadFull(c.in, header); err != nil {
			return 0, err
		}
		c.left = payloadBytes(header)
		if http2.FrameType(header[3]) == http2.FrameSettings && http2.Flags(header[4]).Has(http2.FlagSettingsAck) && c.left == 0 {
			c.ackDue = false
			continue
		}
		c.head = header
	}
}
