package state

import (
	"context"
	"errors"
	"time"

	"github.com/belaydb/belay/command"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// applyEntry applies one entry as one transaction of the open batch. The clock is read once for each: the end of one is
// the start of the next.
func (m *Machine) applyEntry(e *command.Entry, out *command.Result, start time.Time) (end time.Time) {
	k := kindOf(e.Request)
	m.now.kind = k
	if k == kindNone && len(e.Request.ProtoReflect().GetUnknown()) > 0 {
		m.stop("it asks for something that this version does not know; a newer member wrote it: upgrade this member")
	}
	m.w.Begin()
	*out = m.dispatch(k, e)
	if events, rev := m.w.End(); len(events) > 0 {
		if m.cfg.Sink != nil {
			m.changes = append(m.changes, transaction{rev, events})
		}
	}
	end = time.Now()
	took := end.Sub(start)
	m.metrics.observe(k, isRoutine(out.Err), took)
	if took > m.cfg.WarningApply {
		m.warnSlow(took, e.Request, out)
	}
	if !isRoutine(out.Err) {
		m.warnFailed(took, e.Request, out)
	}
	return end
}

// refusal is the answer of the active alarms: CORRUPT stops all that depends on or changes the keys, NOSPACE all that grows
// the database.
func (c *cluster) refusal(k kind, r *pb.InternalRaftRequest) error {
	if c.alarmActive(pb.AlarmType_CORRUPT) {
		switch k {
		case kindPut, kindRange, kindDeleteRange, kindTxn, kindCompaction, kindLeaseGrant, kindLeaseRevoke:
			return ErrCorrupt
		}
	}
	if c.alarmActive(pb.AlarmType_NOSPACE) {
		switch k {
		case kindPut, kindLeaseGrant:
			return ErrNoSpace
		case kindTxn:
			if costTxn(r.Txn) > 0 {
				return ErrNoSpace
			}
		}
	}
	return nil
}

// AlarmRefusal is the error with which the alarms of now refuse a request; nil: they do not. Any goroutine may call it.
func (m *Machine) AlarmRefusal(r *pb.InternalRaftRequest) error {
	return m.published.Load().refusal(kindOf(r), r)
}

func (m *Machine) dispatch(k kind, e *command.Entry) command.Result {
	r := e.Request
	if m.work.alarms.any() { // asked before the caller's rights, as in etcd
		if err := m.work.refusal(k, r); err != nil {
			return command.Result{Err: err}
		}
	}
	if err := m.authorize(k, r); err != nil {
		return command.Result{Err: err}
	}
	if k.isAuth() {
		return m.applyAuth(e)
	}
	switch k {
	case kindPut:
		cost := costPut(r.Put)
		fits := m.quota.fits(m.bytes + cost)
		m.bytes += cost
		resp, err := m.put(r.Put, e.Unawaited)
		return m.fitting(result(resp, resp != nil, err, fits), fits)
	case kindTxn:
		cost := costTxn(r.Txn)
		fits := cost == 0 || m.quota.fits(m.bytes+cost)
		m.bytes += cost
		resp, err := m.txn(e)
		return m.fitting(result(resp, resp != nil, err, fits), fits)
	case kindLeaseGrant:
		fits := m.quota.fits(m.bytes + leaseOverheadBytes)
		m.bytes += leaseOverheadBytes
		resp, err := m.leaseGrant(r.LeaseGrant)
		return m.fitting(result(resp, resp != nil, err, fits), fits)
	case kindDeleteRange:
		resp, err := m.deleteRange(r.DeleteRange, e.Awaited())
		return result(resp, resp != nil, err, true)
	case kindRange:
		if !e.Awaited() {
			return command.Result{}
		}
		resp, err := RangeWithin(context.Background(), m.w, r.Range, m.cfg.MaxAnswerBytes)
		return result(resp, resp != nil, m.orStop("range", err), true)
	case kindCompaction:
		return m.compact(r.Compaction)
	case kindLeaseRevoke:
		resp, err := m.leaseRevoke(r.LeaseRevoke)
		return result(resp, true, err, true)
	case kindLeaseCheckpoint:
		return command.Result{Response: m.leaseCheckpoint(r.LeaseCheckpoint)}
	case kindAlarm:
		return command.Result{Response: m.alarm(r.Alarm, raisedItself(r.Header.GetUsername() == command.Itself))}
	case kindClusterVersionSet:
		return command.Result{Err: m.setClusterVersion(r.ClusterVersionSet)}
	case kindClusterMemberAttrSet:
		return command.Result{Err: m.setMemberAttributes(r.ClusterMemberAttrSet)}
	case kindDowngradeInfoSet:
		m.setDowngrade(r.DowngradeInfoSet)
		return command.Result{}
	case kindDowngradeVersionTest: // exists for etcd's tests; does nothing
		return command.Result{}
	}
	return command.Result{Err: ErrUnknownRequest}
}

// fitting tells of a write that was applied although it does not fit.
func (m *Machine) fitting(r command.Result, fits bool) command.Result {
	if !fits && errors.Is(r.Err, ErrNoSpace) && m.cfg.OnNoSpace != nil {
		m.cfg.OnNoSpace()
	}
	return r
}

// result builds a result without an interface that holds a nil pointer. What was applied although it does not fit into the
// quota is answered with ErrNoSpace, as etcd does: the server raises the alarm, on every member that sees it.
func result(resp proto.Message, ok bool, err error, fits bool) command.Result {
	r := command.Result{Err: err}
	if ok {
		r.Response = resp
	}
	if err == nil && !fits {
		r.Err = ErrNoSpace
	}
	return r
}
