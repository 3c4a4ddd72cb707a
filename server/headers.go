package server

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// headers fills the headers of answers. Any goroutine.
type headers struct {
	clusterID, memberID uint64
	term                func() uint64
	revision            func() int64
}

// fill completes a header whose revision may be set; revision 0 becomes the current one.
func (h *headers) fill(r *pb.ResponseHeader) {
	h.fillWithoutRevision(r)
	if r.Revision == 0 {
		r.Revision = h.revision()
	}
}

func (h *headers) fillWithoutRevision(r *pb.ResponseHeader) {
	r.ClusterId = h.clusterID
	r.MemberId = h.memberID
	r.RaftTerm = h.term()
}

// now is a header of now.
func (h *headers) now() *pb.ResponseHeader {
	r := &pb.ResponseHeader{}
	h.fill(r)
	return r
}
