package state

import (
	"errors"
	"fmt"

	"github.com/belaydb/belay/lease"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func (m *Machine) leaseGrant(r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	ttl, err := m.cfg.Leases.Grant(m.b, lease.ID(r.ID), r.TTL)
	switch {
	case errors.Is(err, lease.ErrNotFound), errors.Is(err, lease.ErrExists), errors.Is(err, lease.ErrTTLTooLarge):
		return nil, err
	case err != nil:
		m.stop(fmt.Sprintf("lease grant: %v", err))
	}
	return &pb.LeaseGrantResponse{Header: m.revisionHeader(), ID: r.ID, TTL: ttl}, nil
}

// leaseRevoke deletes the keys of the lease in key order, all in one revision, and the lease. An unknown lease gives a
// response beside its error, as in etcd.
func (m *Machine) leaseRevoke(r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	id := lease.ID(r.ID)
	if !m.cfg.Leases.Exists(id) {
		return &pb.LeaseRevokeResponse{Header: m.revisionHeader()}, lease.ErrNotFound
	}
	keys, err := m.cfg.Leases.Keys(m.b, id)
	for i := 0; i < len(keys) && err == nil; i++ {
		if err = m.cfg.Leases.Detach(m.b, id, keys[i]); err == nil {
			_, _, err = m.w.DeleteRange(keys[i], nil, false)
		}
	}
	if err == nil {
		err = m.cfg.Leases.Revoke(m.b, id)
		delete(m.writers.may, r.ID)
	}
	if err != nil {
		m.stop(fmt.Sprintf("lease revoke: %v", err))
	}
	return &pb.LeaseRevokeResponse{Header: m.revisionHeader()}, nil
}

func (m *Machine) leaseCheckpoint(r *pb.LeaseCheckpointRequest) *pb.LeaseCheckpointResponse {
	for _, c := range r.Checkpoints {
		if err := m.cfg.Leases.Checkpoint(m.b, lease.ID(c.GetID()), c.GetRemaining_TTL()); err != nil {
			m.stop(fmt.Sprintf("lease checkpoint: %v", err))
		}
	}
	return &pb.LeaseCheckpointResponse{Header: m.revisionHeader()}
}
