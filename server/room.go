package server

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
)

// How a NOSPACE alarm ends by itself. A member that raised one of its own accord disarms it when it has had room for
// roomLasts: its data takes at most seven eighths of the quota, and half as much again is free on its disk as it needs. Far enough
// from where it is raised, so that it does not come and go. The cluster takes writes again when the last member has done so.
// What a client has raised (command.Itself tells), only a client disarms.
const (
	roomShare   = 8 // the part of the quota that must be free is 1/roomShare
	roomLasts   = 800 * time.Millisecond
	spaceLook   = 500 * time.Millisecond
	rewriteRest = 10 * time.Second // between two rewritings of the store, at least
)

// room is what watchSpace remembers between two looks.
type room struct {
	since   time.Time // there has been room at every look since; zero: there was none at the last
	rewrite time.Time // no rewriting of the store before
}

// look says whether there is room, for long enough, and whether rewriting the store would make some. free is what the disk
// can take, minFree what it must.
func (r *room) look(now time.Time, quota, total, inUse int64, free, minFree uint64) (enough, rewrite bool) {
	mark := quota - quota/roomShare
	fits := quota < 0 || total <= mark
	if fits && free >= minFree+minFree/2 {
		if r.since.IsZero() {
			r.since = now
		}
	} else {
		r.since = time.Time{}
	}
	enough = !r.since.IsZero() && now.Sub(r.since) >= roomLasts
	rewrite = !fits && inUse <= mark && free >= uint64(inUse)+minFree && !now.Before(r.rewrite)
	return enough, rewrite
}

// makeRoom looks whether a NOSPACE alarm may end, and has the store rewritten if it is full of what is no longer in use.
func (s *Server) makeRoom(free uint64) {
	s.forgetRemoved()
	active, itself := s.state.Alarm(pb.AlarmType_NOSPACE, s.cfg.MemberID)
	if !active {
		s.room = room{rewrite: s.room.rewrite}
		return
	}
	total, inUse := s.cfg.Store.Size()
	enough, rewrite := s.room.look(time.Now(), s.state.QuotaBytes(), total, inUse, free, s.cfg.MinFreeBytes)
	if rewrite && !s.defragging.Load() {
		s.logger.Info("the database is full of what is no longer in use; rewriting it", sizeFields(total, inUse)...)
		s.room.rewrite = time.Now().Add(rewriteRest)
		s.defragment()
	}
	if !enough || !itself || !s.cfg.NoSpaceDisarm {
		return
	}
	s.disarmNoSpace(s.cfg.MemberID, func() {
		s.logger.Info("this member has room again; disarming its NOSPACE alarm",
			append(sizeFields(total, inUse), zap.Int64("quota-size-bytes", s.state.QuotaBytes()), zap.Uint64("free-bytes", free))...)
	})
}

// forgetRemoved has the leader disarm what members raised that are members no longer: they cannot.
func (s *Server) forgetRemoved() {
	if !s.cfg.NoSpaceDisarm || !s.state.AlarmActive(pb.AlarmType_NOSPACE) || s.replica.Leader() != s.cfg.MemberID {
		return
	}
	for _, a := range s.state.Alarms() {
		if _, itself := s.state.Alarm(a.Alarm, a.MemberID); a.Alarm == pb.AlarmType_NOSPACE && itself && s.state.Member(a.MemberID) == nil {
			s.disarmNoSpace(a.MemberID, func() {
				s.logger.Info("disarming the NOSPACE alarm of a member that was removed", zap.String("member-id", idText(a.MemberID)))
			})
			return
		}
	}
}

// disarmNoSpace proposes in the background that the alarm of a member ends, as raiseNoSpace does that it begins.
func (s *Server) disarmNoSpace(id uint64, say func()) {
	if !s.quotaAlarm.CompareAndSwap(false, true) {
		return
	}
	say()
	s.background(func() {
		defer s.quotaAlarm.Store(false)
		ctx, cancel := context.WithTimeout(s.stopped, s.cfg.RequestTimeout)
		defer cancel()
		_, err := s.alarm(ctx, &pb.AlarmRequest{MemberID: id, Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE})
		switch {
		case s.stopped.Err() != nil:
		case err != nil:
			s.logger.Warn("failed to disarm the NOSPACE alarm", zap.Error(err))
		case s.state.AlarmActive(pb.AlarmType_NOSPACE):
			var others []string
			for _, a := range s.state.Alarms() {
				if a.Alarm == pb.AlarmType_NOSPACE {
					others = append(others, idText(a.MemberID))
				}
			}
			s.logger.Info("other members have no space yet: writes are refused still", zap.Strings("member-ids", others))
		default:
			s.logger.Info("NOSPACE is over: no member has raised it; writes are taken again")
		}
	})
}

// raiseItself is the proposal of an alarm that this member raises of its own accord.
func (s *Server) raiseItself(ctx context.Context, alarm pb.AlarmType) error {
	_, err := s.proposeOwn(ctx, kindAlarm, &pb.InternalRaftRequest{
		Header: &pb.RequestHeader{Username: command.Itself},
		Alarm:  &pb.AlarmRequest{MemberID: s.cfg.MemberID, Action: pb.AlarmRequest_ACTIVATE, Alarm: alarm},
	})
	return err
}
