package rpc

import (
	"context"
	"encoding/base64"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

// A request is what a block of headers says. Two calls whose blocks mean the same share one, so
// nothing of it changes once it is sealed.
type request struct {
	// method and path as they came; the method is checked after what can be wrong with the rest.
	httpMethod, path string
	called           *method // nil: not registered
	subtype          string  // of the content type, after "application/grpc+"
	encoding         string  // of the messages; "": none
	timeout          time.Duration
	timed            bool // timeout is set
	// contentLength is how many bytes of DATA the client announces; -1: it does not.
	contentLength int64
	md            metadata.MD
	ctx           context.Context // with md and the peer

	// malformed: the stream is reset, as RFC 9113 (8.1.1) asks for.
	malformed bool
	// truncated: there is more than the limit of a header list; the rest was not kept.
	truncated bool
	// refusal is the answer to a request that is HTTP but no call; nil: it is one.
	refusal *refusal

	// Of the block that is being read.
	size                    int
	regular                 bool // a field that is no pseudo-header was seen
	scheme, hasMethod       bool
	hasPath, hasAuthority   bool
	contentType, headerText string // an invalid content type; what is wrong with a header
	isGRPC                  bool
}

// refusal is an answer without a handler: headers alone, with which the stream ends.
type refusal struct {
	httpStatus int
	code       codes.Code
	text       string
}

// fieldOverhead is what RFC 9113 (6.5.2) adds to a field for the size of a header list.
const fieldOverhead = 32

// add takes the next field of a block. most bounds the size of all.
func (r *request) add(f hpack.HeaderField, most int) {
	if r.truncated || r.malformed {
		return
	}
	if r.size += len(f.Name) + len(f.Value) + fieldOverhead; r.size > most {
		r.truncated = true
		return
	}
	if !httpguts.ValidHeaderFieldValue(f.Value) {
		r.malformed = true
		return
	}
	if strings.HasPrefix(f.Name, ":") {
		r.pseudo(f)
		return
	}
	r.regular = true
	if !validFieldName(f.Name) {
		r.malformed = true
		return
	}
	switch f.Name {
	case "content-type":
		subtype, ok := contentSubtype(f.Value)
		if !ok {
			r.contentType = f.Value
			return
		}
		r.keep(f.Name, f.Value)
		r.subtype, r.isGRPC = subtype, true
	case "grpc-encoding":
		r.encoding = f.Value
	case "grpc-timeout":
		d, err := parseTimeout(f.Value)
		if err != nil {
			r.headerText = "malformed grpc-timeout: " + err.Error()
		}
		r.timeout, r.timed = d, true
	case "connection", "proxy-connection", "keep-alive", "upgrade", "transfer-encoding":
		r.malformed = true
	case "te":
		r.malformed = r.malformed || f.Value != "trailers"
	case "content-length":
		n, err := strconv.ParseUint(f.Value, 10, 63)
		if err != nil || r.contentLength >= 0 && r.contentLength != int64(n) {
			r.malformed = true
			return
		}
		r.contentLength = int64(n)
		r.keep(f.Name, f.Value)
	case "grpc-message-type", "grpc-message", "grpc-status":
	default:
		v := f.Value
		if strings.HasSuffix(f.Name, binarySuffix) {
			raw, err := decodeBinary(v)
			if err != nil {
				r.headerText = fmt.Sprintf("malformed binary metadata %q in header %q: %v", f.Value, f.Name, err)
				return
			}
			v = string(raw)
		}
		r.keep(f.Name, v)
	}
}

func (r *request) keep(name, value string) { r.md[name] = append(r.md[name], value) }

// pseudo takes a field whose name begins with a colon. Each comes once, before all others.
func (r *request) pseudo(f hpack.HeaderField) {
	once := func(seen *bool) {
		r.malformed = r.malformed || *seen
		*seen = true
	}
	r.malformed = r.malformed || r.regular
	switch f.Name {
	case ":method":
		once(&r.hasMethod)
		r.httpMethod = f.Value
	case ":path":
		once(&r.hasPath)
		r.path = f.Value
	case ":scheme":
		once(&r.scheme)
	case ":authority":
		once(&r.hasAuthority)
		r.keep(f.Name, f.Value)
	default:
		r.malformed = true
	}
}

// seal ends a block and decides, in grpc-go's order, what is wrong with it.
func (r *request) seal() {
	if !r.hasMethod || !r.hasPath || !r.scheme || r.path == "" {
		r.malformed = true
	}
	if r.malformed || r.truncated {
		return
	}
	authorities, hosts := r.md[":authority"], r.md["host"]
	switch {
	case len(authorities) > 1 || len(hosts) > 1:
		r.refuse(http.StatusBadRequest, codes.Internal, fmt.Sprintf(
			"num values of :authority: %v, num values of host: %v, both must only have 1 value as per HTTP/2 spec", len(authorities), len(hosts)))
	case !r.isGRPC:
		r.refuse(http.StatusUnsupportedMediaType, codes.InvalidArgument, fmt.Sprintf("invalid gRPC request content-type %q", r.contentType))
	case r.headerText != "":
		r.refuse(http.StatusBadRequest, codes.Internal, r.headerText)
	case len(authorities) == 0 && len(hosts) == 0:
		r.refuse(http.StatusBadRequest, codes.Internal, "no host or :authority header present")
	case r.httpMethod != http.MethodPost:
		r.refuse(http.StatusMethodNotAllowed, codes.Internal, fmt.Sprintf("Received a HEADERS frame with :method %q which should be POST", r.httpMethod))
	}
	if len(authorities) == 0 && len(hosts) > 0 {
		r.md[":authority"] = hosts
	}
	delete(r.md, "host")
}

func (r *request) refuse(status int, code codes.Code, text string) {
	r.refusal = &refusal{status, code, text}
}

// validFieldName reports whether a name may be on the wire: a token without upper case.
func validFieldName(name string) bool {
	if name == "" {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c >= 'A' && c <= 'Z' || !httpguts.IsTokenRune(rune(c)) {
			return false
		}
	}
	return true
}

const baseContentType = "application/grpc"

// contentSubtype is what follows application/grpc, and whether the type is of gRPC at all.
func contentSubtype(contentType string) (string, bool) {
	rest, ok := strings.CutPrefix(contentType, baseContentType)
	if !ok || rest == "" {
		return "", ok
	}
	if rest[0] == '+' || rest[0] == ';' {
		return rest[1:], true
	}
	return "", false
}

// binarySuffix is that of headers whose values are any bytes, in base64 on the wire.
const binarySuffix = "-bin"

// decodeBinary takes base64 with and without padding.
func decodeBinary(v string) ([]byte, error) {
	if len(v)%4 == 0 {
		return base64.StdEncoding.DecodeString(v)
	}
	return base64.RawStdEncoding.DecodeString(v)
}

// parseTimeout reads a grpc-timeout: up to eight digits and a unit.
func parseTimeout(s string) (time.Duration, error) {
	if len(s) < 2 {
		return 0, fmt.Errorf("transport: timeout string is too short: %q", s)
	}
	if len(s) > 9 {
		return 0, fmt.Errorf("transport: timeout string is too long: %q", s)
	}
	var unit time.Duration
	switch s[len(s)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, fmt.Errorf("transport: timeout unit is not recognized: %q", s)
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 64)
	if err != nil {
		return 0, err
	}
	if n > uint64(math.MaxInt64/unit) {
		return math.MaxInt64, nil
	}
	return time.Duration(n) * unit, nil
}
