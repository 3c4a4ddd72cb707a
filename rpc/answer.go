package rpc

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// The blocks of headers of answers. Our side of HPACK's table holds at most two entries, and so the
// headers and the trailers of nearly all answers take two bytes and one:
//
//	tableEmpty    --first answer-->   tableType    content-type is entry 62
//	tableType     --first success-->  tableStatus  grpc-status 0 is entry 62, content-type 63
//	any           --a client that wants less than the default table-->  tableNone
//
// All other fields are literals that are not indexed, without Huffman's code: they are rare.
// A block that uses the table must be written in the order in which it was encoded, so encoding
// happens under the connection's lock, straight into what is written next.
const (
	tableEmpty = iota
	tableType
	tableStatus
	tableNone // the table has been set to size 0 and stays so
)

const (
	indexStatus200 = 0x88
	indexFirst     = 0x80 | 62 // our entry that is the youngest
	indexSecond    = 0x80 | 63
	resizeToZero   = 0x20
	// literalIndexed begins a literal that enters the table; with the index of its name, or 0.
	literalIndexed = 0x40
	// nameContentType is the static table's.
	nameContentType = 31
)

// appendFrame begins a frame.
func appendFrame(b []byte, size int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	return append(b, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// appendLength appends an integer of a 7-bit prefix whose eighth bit is 0: no Huffman.
func appendLength(b []byte, n int) []byte {
	if n < 127 {
		return append(b, byte(n))
	}
	b = append(b, 127)
	for n -= 127; n >= 128; n >>= 7 {
		b = append(b, byte(n)|128)
	}
	return append(b, byte(n))
}

func appendText(b []byte, s string) []byte { return append(appendLength(b, len(s)), s...) }

// appendField appends a literal that does not enter the table.
func appendField(b []byte, name, value string) []byte {
	return appendText(appendText(append(b, 0), name), value)
}

// appendAnswerHead appends the fields that open an answer, into a block that has begun.
// REQUIRES: mu.
func (c *conn) appendAnswerHead(b []byte, subtype string) []byte {
	b = append(b, indexStatus200)
	if subtype != "" {
		return appendField(b, "content-type", baseContentType+"+"+subtype)
	}
	switch c.table {
	case tableEmpty:
		c.table = tableType
		return appendText(append(b, literalIndexed|nameContentType), baseContentType)
	case tableType:
		return append(b, indexFirst)
	case tableStatus:
		return append(b, indexSecond)
	}
	return appendField(b, "content-type", baseContentType)
}

// appendSuccess appends grpc-status 0. REQUIRES: mu.
func (c *conn) appendSuccess(b []byte) []byte {
	switch c.table {
	case tableType:
		c.table = tableStatus
		return appendText(appendText(append(b, literalIndexed), "grpc-status"), "0")
	case tableStatus:
		return append(b, indexFirst)
	}
	return appendField(b, "grpc-status", "0")
}

// beginBlock begins a HEADERS frame at the end of b and returns where it begins; endBlock completes
// it. REQUIRES of both: mu.
func (c *conn) beginBlock(b []byte, id uint32, flags http2.Flags) ([]byte, int) {
	at := len(b)
	b = appendFrame(b, 0, http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, id)
	if c.shrunk {
		c.shrunk = false
		b = append(b, resizeToZero)
	}
	return b, at
}

// endBlock completes the frame that begins at `at`, and cuts what is longer than the client takes
// in one frame into CONTINUATIONs.
func (c *conn) endBlock(b []byte, at int) []byte {
	size := len(b) - at - frameHeaderBytes
	if size <= c.peerFrame {
		b[at], b[at+1], b[at+2] = byte(size>>16), byte(size>>8), byte(size)
		return b
	}
	block := append([]byte(nil), b[at+frameHeaderBytes:]...)
	flags := http2.Flags(b[at+4]) &^ http2.FlagHeadersEndHeaders
	kind, id := http2.FrameHeaders, streamOf(b[at:])
	b = b[:at]
	for len(block) > 0 {
		n := min(len(block), c.peerFrame)
		if n == len(block) {
			flags |= http2.FlagContinuationEndHeaders // the same bit as for HEADERS
		}
		b = append(appendFrame(b, n, kind, flags, id), block[:n]...)
		block = block[n:]
		kind, flags = http2.FrameContinuation, 0
	}
	return b
}

// mdFields are the metadata's fields as they go on the wire; the reserved ones are left out.
func mdFields(md metadata.MD) (out []hpack.HeaderField) {
	for k, values := range md {
		if reservedField(k) {
			continue
		}
		for _, v := range values {
			if strings.HasSuffix(k, binarySuffix) {
				v = base64.RawStdEncoding.EncodeToString([]byte(v))
			}
			out = append(out, hpack.HeaderField{Name: k, Value: v})
		}
	}
	return out
}

// reservedField reports whether a name is HTTP's or gRPC's own.
func reservedField(name string) bool {
	if strings.HasPrefix(name, ":") {
		return true
	}
	switch name {
	case "content-type", "user-agent", "grpc-message-type", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout", "te":
		return true
	}
	return false
}

// detailsField is a status with details, as bytes.
const detailsField = "grpc-status-details-bin"

// trailersOf are the fields that end a stream with this status; none: a bare success.
func trailersOf(st *status.Status, trailer metadata.MD) []hpack.HeaderField {
	var out []hpack.HeaderField
	if st.Code() != codes.OK || len(trailer) > 0 {
		out = append(out, hpack.HeaderField{Name: "grpc-status", Value: strconv.Itoa(int(st.Code()))},
			hpack.HeaderField{Name: "grpc-message", Value: percentEncoded(st.Message())})
	}
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		if b, err := proto.Marshal(p); err == nil {
			out = append(out, hpack.HeaderField{Name: detailsField, Value: base64.RawStdEncoding.EncodeToString(b)})
			trailer = trailer.Copy()
			delete(trailer, detailsField)
		}
	}
	return append(out, mdFields(trailer)...)
}

// percentEncoded is a message as grpc-message has it: printable ASCII but %, all else by bytes, and
// what is not UTF-8 replaced.
func percentEncoded(s string) string {
	plain := func(c byte) bool { return c >= ' ' && c <= '~' && c != '%' }
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	out := []byte(s[:i])
	for s = s[i:]; len(s) > 0; {
		r, size := utf8.DecodeRuneInString(s)
		if size == 1 && plain(s[0]) {
			out = append(out, s[0])
		} else {
			for _, b := range []byte(string(r)) {
				out = fmt.Appendf(out, "%%%02X", b)
			}
		}
		s = s[size:]
	}
	return string(out)
}

// listBytes is the size of fields in the sense of SETTINGS_MAX_HEADER_LIST_SIZE.
func listBytes(fields []hpack.HeaderField) (n int64) {
	for _, f := range fields {
		n += int64(f.Size())
	}
	return n
}
