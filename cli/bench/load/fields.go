package load

import "google.golang.org/protobuf/encoding/protowire"

// Field numbers of the answers that are looked into.
const (
	respWatchID   = 2
	respCreated   = 3
	respCanceled  = 4
	respCompacted = 5
	respReason    = 6
	respEvents    = 11

	eventKV       = 2
	kvKey         = 1
	kvModRevision = 3

	headerField    = 1
	headerRevision = 3
)

// A WatchAnswer is what a watching client wants to know of an encoded WatchResponse.
type WatchAnswer struct {
	ID                int64
	Created, Canceled bool
	Compacted         int64 // the revision that it asked for is older than this one; 0: it is not
	Reason            string
	Events            int
}

// ReadWatch reads an encoded WatchResponse and calls event, which may be nil, with the key and the
// revision of each event. The key is a part of resp.
func ReadWatch(resp []byte, event func(key []byte, revision int64)) (a WatchAnswer) {
	eachField(resp, func(num protowire.Number, b []byte, v uint64) {
		switch num {
		case respWatchID:
			a.ID = int64(v)
		case respCreated:
			a.Created = v != 0
		case respCanceled:
			a.Canceled = v != 0
		case respCompacted:
			a.Compacted = int64(v)
		case respReason:
			a.Reason = string(b)
		case respEvents:
			a.Events++
			if event != nil {
				readEvent(b, event)
			}
		}
	})
	return a
}

func readEvent(b []byte, event func(key []byte, revision int64)) {
	var key []byte
	var revision int64
	eachField(b, func(num protowire.Number, kv []byte, _ uint64) {
		if num != eventKV {
			return
		}
		eachField(kv, func(num protowire.Number, b []byte, v uint64) {
			switch num {
			case kvKey:
				key = b
			case kvModRevision:
				revision = int64(v)
			}
		})
	})
	event(key, revision)
}

// Revision is that of the header of an encoded answer of the KV service.
func Revision(resp []byte) (revision int64) {
	eachField(resp, func(num protowire.Number, header []byte, _ uint64) {
		if num != headerField {
			return
		}
		eachField(header, func(num protowire.Number, _ []byte, v uint64) {
			if num == headerRevision {
				revision = int64(v)
			}
		})
	})
	return revision
}

// BytesField is the last field of bytes or text with a number in a message; nil if there is none.
func BytesField(msg []byte, number protowire.Number) (field []byte) {
	eachField(msg, func(num protowire.Number, b []byte, _ uint64) {
		if num == number {
			field = b
		}
	})
	return field
}

// eachField calls fn with each field: b if it is bytes, v if it is a varint. What cannot be read
// ends it.
func eachField(msg []byte, fn func(num protowire.Number, b []byte, v uint64)) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return
		}
		msg = msg[n:]
		switch typ {
		case protowire.BytesType:
			b, n := protowire.ConsumeBytes(msg)
			if n < 0 {
				return
			}
			fn(num, b, 0)
			msg = msg[n:]
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(msg)
			if n < 0 {
				return
			}
			fn(num, nil, v)
			msg = msg[n:]
		default:
			if n = protowire.ConsumeFieldValue(num, typ, msg); n < 0 {
				return
			}
			msg = msg[n:]
		}
	}
}
