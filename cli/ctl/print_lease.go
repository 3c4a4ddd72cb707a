package ctl

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// clientv3's lease answers embed the header, so they count as proto.Messages that are only a
// header; that is what etcdctl prints for them in the protobuf format. Revoke's answer does not,
// and is refused there.

func grantReply(r *clientv3.LeaseGrantResponse) reply {
	return reply{
		raw:    r,
		simple: func(p *page) { p.printf("lease %016x granted with TTL(%ds)\n", int64(r.ID), r.TTL) },
		fields: func(p *page) { p.lease(r.ResponseHeader, r.ID, r.TTL) },
	}
}

func keepAliveReply(r *clientv3.LeaseKeepAliveResponse) reply {
	return reply{
		raw:    r,
		simple: func(p *page) { p.printf("lease %016x keepalived with TTL(%d)\n", int64(r.ID), r.TTL) },
		fields: func(p *page) { p.lease(r.ResponseHeader, r.ID, r.TTL) },
	}
}

func (p *page) lease(h *pb.ResponseHeader, id clientv3.LeaseID, ttl int64) {
	p.header(h)
	p.leaseID("ID", int64(id))
	p.field("TTL", ttl)
}

func revokeReply(id clientv3.LeaseID, r *clientv3.LeaseRevokeResponse) reply {
	return reply{
		raw:    r,
		simple: func(p *page) { p.printf("lease %016x revoked\n", int64(id)) },
		fields: func(p *page) { p.header((*pb.LeaseRevokeResponse)(r).GetHeader()) },
	}
}

func timeToLiveReply(r *clientv3.LeaseTimeToLiveResponse, withKeys bool) reply {
	return reply{
		raw: r,
		simple: func(p *page) {
			if r.GrantedTTL == 0 && r.TTL == -1 {
				p.printf("lease %016x already expired\n", int64(r.ID))
				return
			}
			p.printf("lease %016x granted with TTL(%ds), remaining(%ds)", int64(r.ID), r.GrantedTTL, r.TTL)
			if withKeys {
				keys := make([]string, len(r.Keys))
				for i, key := range r.Keys {
					keys[i] = string(key)
				}
				p.printf(", attached keys(%v)", keys)
			}
			p.line()
		},
		fields: func(p *page) {
			p.lease(r.ResponseHeader, r.ID, r.TTL)
			p.field("GrantedTTL", r.GrantedTTL)
			for _, key := range r.Keys {
				p.quoted("Key", string(key))
			}
		},
	}
}

func leasesReply(r *clientv3.LeaseLeasesResponse) reply {
	return reply{
		raw: r,
		simple: func(p *page) {
			p.line(fmt.Sprintf("found %d leases", len(r.Leases)))
			for _, l := range r.Leases {
				p.printf("%016x\n", int64(l.ID))
			}
		},
		fields: func(p *page) {
			p.header(r.ResponseHeader)
			for _, l := range r.Leases {
				p.leaseID("ID", int64(l.ID))
			}
		},
	}
}
