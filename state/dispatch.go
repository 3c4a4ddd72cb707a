package state

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
)

// applyEntry applies one entry as one transaction of the open batch. The clock is read once for
// each: the end of one is the start of the next.
func (a *application) applyEntry(e *command.Entry, out *command.Result, start time.Time) (end time.Time) {
	k := kindOf(e.Request)
	a.at.kind = k
	a.entry.data, a.entry.place, a.entry.from, a.entry.placed = e.Data, e.Place, 0, 0
	if k == kindNone && len(e.Request.ProtoReflect().GetUnknown()) > 0 {
		a.stop("it asks for something that this version does not know; a newer member wrote it: upgrade this member")
	}
	a.w.Begin()
	*out = a.dispatch(k, e)
	e.Placed = a.entry.placed
	if events, rev := a.w.End(); len(events) > 0 {
		if a.m.cfg.Sink != nil {
			a.changes = append(a.changes, transaction{rev, events})
		}
	}
	end = time.Now()
	took := end.Sub(start)
	a.m.metrics.observe(k, isRoutine(out.Err), took)
	if took > a.m.cfg.WarningApply {
		a.warnSlow(took, e.Request, out)
	}
	if !isRoutine(out.Err) {
		a.warnFailed(took, e.Request, out)
	}
	return end
}

// refusal is the error of the active alarms: CORRUPT refuses everything that depends on or changes
// the keys, NOSPACE everything that grows the database.
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

// AlarmRefusal is the error with which the active alarms refuse a request; nil: they do not. Any
// goroutine may call it.
func (m *Machine) AlarmRefusal(r *pb.InternalRaftRequest) error {
	return m.published.Load().refusal(kindOf(r), r)
}

func (a *application) dispatch(k kind, e *command.Entry) command.Result {
	r := e.Request
	if a.cluster.alarms.any() { // checked before the caller's rights, as in etcd
		if err := a.cluster.refusal(k, r); err != nil {
			return command.Result{Err: err}
		}
	}
	if err := a.authorize(k, r); err != nil {
		return command.Result{Err: err}
	}
	if k.isAuth() {
		return a.applyAuth(e)
	}
	switch k {
	case kindPut:
		cost := costPut(r.Put)
		fits := a.m.quota.fits(a.bytes + cost)
		a.bytes += cost
		resp, err := a.put(r.Put, e.Unawaited)
		return a.fitting(result(resp, resp != nil, err, fits), fits)
	case kindTxn:
		cost := costTxn(r.Txn)
		fits := cost == 0 || a.m.quota.fits(a.bytes+cost)
		a.bytes += cost
		resp, err := a.txn(e)
		return a.fitting(result(resp, resp != nil, err, fits), fits)
	case kindLeaseGrant:
		fits := a.m.quota.fits(a.bytes + leaseOverheadBytes)
		a.bytes += leaseOverheadBytes
		resp, err := a.leaseGrant(r.LeaseGrant)
		return a.fitting(result(resp, resp != nil, err, fits), fits)
	case kindDeleteRange:
		resp, err := a.deleteRange(r.DeleteRange, e.Awaited())
		return result(resp, resp != nil, err, true)
	case kindRange:
		if !e.Awaited() {
			return command.Result{}
		}
		resp, err := RangeWithin(context.Background(), a.w, r.Range, a.m.cfg.MaxAnswerBytes)
		return result(resp, resp != nil, a.orStop("range", err), true)
	case kindCompaction:
		return a.compact(r.Compaction)
	case kindLeaseRevoke:
		resp, err := a.leaseRevoke(r.LeaseRevoke)
		return result(resp, true, err, true)
	case kindLeaseCheckpoint:
		return command.Result{Response: a.leaseCheckpoint(r.LeaseCheckpoint)}
	case kindAlarm:
		return command.Result{Response: a.alarm(r.Alarm, raisedItself(r.Header.GetUsername() == command.Itself))}
	case kindClusterVersionSet:
		return command.Result{Err: a.setClusterVersion(r.ClusterVersionSet)}
	case kindClusterMemberAttrSet:
		return command.Result{Err: a.setMemberAttributes(r.ClusterMemberAttrSet)}
	case kindDowngradeInfoSet:
		a.setDowngrade(r.DowngradeInfoSet)
		return command.Result{}
	case kindDowngradeVersionTest: // exists for etcd's tests; does nothing
		return command.Result{}
	}
	return command.Result{Err: ErrUnknownRequest}
}

// fitting adds the error of a write that was applied although it does not fit.
func (a *application) fitting(r command.Result, fits bool) command.Result {
	if !fits && errors.Is(r.Err, ErrNoSpace) && a.m.cfg.OnNoSpace != nil {
		a.m.cfg.OnNoSpace()
	}
	return r
}

// result builds a result without an interface that holds a nil pointer. A write that was applied
// although it does not fit into the quota is answered with ErrNoSpace, as in etcd: the server
// raises the alarm, on every member that sees it.
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
