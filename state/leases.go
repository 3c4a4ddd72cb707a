package state

import (
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/lease"
)

func (a *application) leaseGrant(r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	ttl, err := a.m.cfg.Leases.Grant(a.b, lease.ID(r.ID), r.TTL)
	switch {
	case errors.Is(err, lease.ErrNotFound), errors.Is(err, lease.ErrExists), errors.Is(err, lease.ErrTTLTooLarge):
		return nil, err
	case err != nil:
		a.failed("lease grant", err)
	}
	return &pb.LeaseGrantResponse{Header: a.revisionHeader(), ID: r.ID, TTL: ttl}, nil
}

// leaseRevoke deletes the keys of the lease in key order, all in one revision, and the lease. An
// unknown lease gives a response beside its error, as in etcd.
func (a *application) leaseRevoke(r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	id := lease.ID(r.ID)
	if !a.m.cfg.Leases.Exists(id) {
		return &pb.LeaseRevokeResponse{Header: a.revisionHeader()}, lease.ErrNotFound
	}
	keys, err := a.m.cfg.Leases.Keys(a.b, id)
	for i := 0; i < len(keys) && err == nil; i++ {
		if err = a.m.cfg.Leases.Detach(a.b, id, keys[i]); err == nil {
			_, _, err = a.w.DeleteRange(keys[i], nil, false)
		}
	}
	if err == nil {
		err = a.m.cfg.Leases.Revoke(a.b, id)
		delete(a.m.writers.may, r.ID)
	}
	if err != nil {
		a.failed("lease revoke", err)
	}
	return &pb.LeaseRevokeResponse{Header: a.revisionHeader()}, nil
}

func (a *application) leaseCheckpoint(r *pb.LeaseCheckpointRequest) *pb.LeaseCheckpointResponse {
	for _, c := range r.Checkpoints {
		if err := a.m.cfg.Leases.Checkpoint(a.b, lease.ID(c.GetID()), c.GetRemaining_TTL()); err != nil {
			a.failed("lease checkpoint", err)
		}
	}
	return &pb.LeaseCheckpointResponse{Header: a.revisionHeader()}
}
