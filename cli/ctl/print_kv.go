package ctl

import (
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// pair prints a key and its value for the simple format.
func (p *page) pair(kv *mvccpb.KeyValue) {
	key, value := string(kv.GetKey()), string(kv.GetValue())
	if p.hex {
		key, value = hexEscape(kv.GetKey()), hexEscape(kv.GetValue())
	}
	if !p.valueOnly {
		p.line(key)
	}
	p.line(value)
}

// hexEscape writes each byte as \xNN.
func hexEscape(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		fmt.Fprintf(&s, `\x%02x`, c)
	}
	return s.String()
}

// header prints a response header for the fields format. Responses that have nothing to do with
// keys carry no revision.
func (p *page) header(h *pb.ResponseHeader) {
	p.id("ClusterID", h.GetClusterId())
	p.id("MemberID", h.GetMemberId())
	if h.GetRevision() > 0 {
		p.field("Revision", h.GetRevision())
	}
	p.field("RaftTerm", h.GetRaftTerm())
}

// id prints a cluster's or member's ID.
func (p *page) id(name string, id uint64) {
	if p.hex {
		p.printf("%q : %x\n", name, id)
	} else {
		p.field(name, id)
	}
}

// pairFields prints a key and everything about it for the fields format.
func (p *page) pairFields(prefix string, kv *mvccpb.KeyValue) {
	p.quoted(prefix+"Key", string(kv.GetKey()))
	p.field(prefix+"CreateRevision", kv.GetCreateRevision())
	p.field(prefix+"ModRevision", kv.GetModRevision())
	p.field(prefix+"Version", kv.GetVersion())
	p.quoted(prefix+"Value", string(kv.GetValue()))
	p.leaseID(prefix+"Lease", kv.GetLease())
}

func (p *page) leaseID(name string, id int64) {
	if p.hex {
		p.printf("%q : %016x\n", name, id)
	} else {
		p.field(name, id)
	}
}

func rangeReply(r *pb.RangeResponse) reply {
	return reply{
		raw: r,
		simple: func(p *page) {
			for _, kv := range r.GetKvs() {
				p.pair(kv)
			}
		},
		fields: func(p *page) {
			p.header(r.GetHeader())
			for _, kv := range r.GetKvs() {
				p.pairFields("", kv)
			}
			p.field("More", r.GetMore())
			p.field("Count", r.GetCount())
		},
	}
}

func putReply(r *pb.PutResponse) reply {
	return reply{
		raw: r,
		simple: func(p *page) {
			p.line("OK")
			if r.GetPrevKv() != nil {
				p.pair(r.GetPrevKv())
			}
		},
		fields: func(p *page) {
			p.header(r.GetHeader())
			if r.GetPrevKv() != nil {
				p.pairFields("Prev", r.GetPrevKv())
			}
		},
	}
}

func deleteReply(r *pb.DeleteRangeResponse) reply {
	return reply{
		raw: r,
		simple: func(p *page) {
			p.line(r.GetDeleted())
			for _, kv := range r.GetPrevKvs() {
				p.pair(kv)
			}
		},
		fields: func(p *page) {
			p.header(r.GetHeader())
			p.field("Deleted", r.GetDeleted())
			for _, kv := range r.GetPrevKvs() {
				p.pairFields("Prev", kv)
			}
		},
	}
}

func txnReply(r *pb.TxnResponse) reply {
	return reply{
		raw:  r,
		json: txnJSONOf(r),
		simple: func(p *page) {
			if r.GetSucceeded() {
				p.line("SUCCESS")
			} else {
				p.line("FAILURE")
			}
			for _, op := range r.GetResponses() {
				p.line()
				opReply(op).simple(p)
			}
		},
		fields: func(p *page) {
			p.header(r.GetHeader())
			p.field("Succeeded", r.GetSucceeded())
			for _, op := range r.GetResponses() {
				opReply(op).fields(p)
			}
		},
	}
}

func opReply(op *pb.ResponseOp) reply {
	switch v := op.GetResponse().(type) {
	case *pb.ResponseOp_ResponseRange:
		return rangeReply(v.ResponseRange)
	case *pb.ResponseOp_ResponsePut:
		return putReply(v.ResponsePut)
	case *pb.ResponseOp_ResponseDeleteRange:
		return deleteReply(v.ResponseDeleteRange)
	case *pb.ResponseOp_ResponseTxn:
		return txnReply(v.ResponseTxn)
	}
	return reply{
		simple: func(p *page) { p.printf("unexpected response %+v\n", op) },
		fields: func(p *page) { p.printf("\"Unknown\" : %q\n", fmt.Sprintf("%+v", op.GetResponse())) },
	}
}

// txnJSON is a TxnResponse for encoding/json. The message's own oneof would come out under Go's
// names; scripts know these.
type txnJSON struct {
	Header    *pb.ResponseHeader `json:"header,omitempty"`
	Succeeded bool               `json:"succeeded,omitempty"`
	Responses []opJSON           `json:"responses,omitempty"`
}

type opJSON struct {
	Response struct {
		Range  *pb.RangeResponse       `json:"response_range,omitempty"`
		Put    *pb.PutResponse         `json:"response_put,omitempty"`
		Delete *pb.DeleteRangeResponse `json:"response_delete_range,omitempty"`
		Txn    *txnJSON                `json:"response_txn,omitempty"`
	} `json:"Response"`
}

func txnJSONOf(r *pb.TxnResponse) *txnJSON {
	t := &txnJSON{Header: r.GetHeader(), Succeeded: r.GetSucceeded()}
	for _, op := range r.GetResponses() {
		var o opJSON
		switch v := op.GetResponse().(type) {
		case *pb.ResponseOp_ResponseRange:
			o.Response.Range = v.ResponseRange
		case *pb.ResponseOp_ResponsePut:
			o.Response.Put = v.ResponsePut
		case *pb.ResponseOp_ResponseDeleteRange:
			o.Response.Delete = v.ResponseDeleteRange
		case *pb.ResponseOp_ResponseTxn:
			o.Response.Txn = txnJSONOf(v.ResponseTxn)
		}
		t.Responses = append(t.Responses, o)
	}
	return t
}

func watchReply(r *clientv3.WatchResponse) reply {
	message := &pb.WatchResponse{
		Header:          r.Header,
		CompactRevision: r.CompactRevision,
		Canceled:        r.Canceled,
		Created:         r.Created,
		Events:          r.Events,
	}
	return reply{
		json: r,
		raw:  message,
		simple: func(p *page) {
			if r.IsProgressNotify() {
				return // printed in every format, by the watch command
			}
			for _, ev := range r.Events {
				p.line(ev.GetType())
				if ev.GetPrevKv() != nil {
					p.pair(ev.GetPrevKv())
				}
				p.pair(ev.GetKv())
			}
		},
		fields: func(p *page) {
			p.header(r.Header)
			for _, ev := range r.Events {
				p.field("Type", ev.GetType())
				if ev.GetPrevKv() != nil {
					p.pairFields("Prev", ev.GetPrevKv())
				}
				p.pairFields("", ev.GetKv())
			}
		},
	}
}
