package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// A badError is about what is in a backup, and not about reaching it.
type badError struct{ error }

func (e badError) Unwrap() error { return e.error }

// bad reports whether an error says that a backup is not what it should be.
func bad(err error) bool {
	_, ok := errors.AsType[badError](err)
	return ok
}

// A Reading is a plan's content, as a datadir.Source. Each pass reads the files anew, and
// compares them with their manifests: a file that changes between two passes is noticed. It belongs
// to one goroutine.
type Reading struct {
	// Lost counts the leases that were made again because no backup has them; see LostLease.
	Lost int

	ctx  context.Context
	d    Depot
	plan *Plan
	pace *Pace
}

// Read makes a reading of a plan. Nothing is read yet.
func Read(ctx context.Context, d Depot, p *Plan, pace *Pace) *Reading {
	return &Reading{ctx: ctx, d: d, plan: p, pace: pace}
}

// LostLease is the TTL, in seconds, of a lease that is made again because a key has it and no
// backup does: it was granted and ended between two increments, or before a full backup. The keys
// end with it, as they did.
const LostLease = 60

// records calls each for the records of one entry that are in parts of a kind.
func (s *Reading) records(e *Entry, holds string, each func(kind byte, body []byte) error) error {
	for _, p := range e.Manifest.Parts {
		if p.Holds != holds {
			continue
		}
		raw, err := readPart(s.ctx, s.d, path.Join(s.plan.Cluster, e.Name), p, s.pace)
		if err != nil {
			return fmt.Errorf("the backup %s: %w", e.Name, err)
		}
		n := int64(0)
		err = eachRecord(raw, func(kind byte, body []byte) error {
			n++
			return each(kind, body)
		})
		if errors.Is(err, errRecord) || err == nil && n != p.Records {
			err = badError{fmt.Errorf("it has %d records, and %d were saved: %w", n, p.Records, errRecord)}
		}
		if err != nil {
			return fmt.Errorf("the backup %s: %s: %w", e.Name, p.Name, err)
		}
	}
	return nil
}

// readPart reads a part's records. That a part is missing is about the backup.
func readPart(ctx context.Context, d Depot, folder string, p Part, pace *Pace) ([]byte, error) {
	if err := pace.wait(ctx, p.Bytes); err != nil {
		return nil, err
	}
	r, err := d.Read(ctx, path.Join(folder, p.Name))
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, badError{fmt.Errorf("%s is missing", p.Name)}
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, p.Bytes, p.Bytes+1)
	n, err := io.ReadFull(r, b)
	if err == nil { // what is behind it makes it another file
		var more int
		more, err = io.ReadFull(r, b[p.Bytes:p.Bytes+1])
		n += more
	}
	if b = b[:n]; err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	raw, err := decodePart(p, b)
	if err != nil {
		return nil, badError{fmt.Errorf("%s is damaged: %w", p.Name, err)}
	}
	return raw, nil
}

// Index is of datadir.Source.
func (s *Reading) Index() uint64 { return s.plan.Last().Manifest.Index }

// errBeyond ends a walk at the plan's revision.
var errBeyond = errors.New("beyond the revision to restore")

// versions calls each for every version of an entry up to the plan's revision.
func (s *Reading) versions(e *Entry, each func(savedVersion) error) error {
	last := [2]int64{e.Manifest.After, int64(^uint64(0) >> 1)}
	n := int64(0)
	err := s.records(e, partVersions, func(kind byte, body []byte) error {
		v, err := decodeVersion(body)
		if kind != recordVersion || err != nil {
			return errRecord
		}
		at := [2]int64{v.main, v.sub}
		if slices.Compare(at[:], last[:]) <= 0 || v.main > e.Manifest.Revision {
			return errRecord
		}
		last = at
		if v.main > s.plan.Revision {
			return errBeyond
		}
		n++
		return each(v)
	})
	switch {
	case errors.Is(err, errBeyond):
		return nil
	case err == nil && n != e.Manifest.Versions:
		return badError{fmt.Errorf("the backup %s has %d versions, and %d were saved", e.Name, n, e.Manifest.Versions)}
	}
	return err
}

// Revisions is of datadir.Source.
func (s *Reading) Revisions(each func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
	for _, e := range s.plan.Chain {
		err := s.versions(e, func(v savedVersion) error {
			kv := new(mvccpb.KeyValue)
			if err := proto.Unmarshal(v.value, kv); err != nil {
				return badError{err}
			}
			return each(v.main, v.sub, v.tombstone, kv)
		})
		if err != nil {
			return err
		}
	}
	// Without a version at the newest revision, the revision itself is still to be restored.
	return each(s.plan.Revision, 0, false, nil)
}

// Compactions is of datadir.Source. What the full backup holds was compacted up to its own
// compaction, and the store goes on from there to the last one.
func (s *Reading) Compactions() (scheduled, finished int64, err error) {
	return s.plan.before().Manifest.Compacted, s.plan.Chain[0].Manifest.Compacted, nil
}

// stateOf calls each for an entry's records of a kind: leases, or users and roles.
func (s *Reading) stateOf(e *Entry, kind byte, want int64, each func(body []byte) error) error {
	n := int64(0)
	err := s.records(e, partState, func(k byte, body []byte) error {
		if k != recordLease && k != recordAuth {
			return errRecord
		}
		if k != kind {
			return nil
		}
		n++
		return each(body)
	})
	if err != nil {
		return err
	}
	return e.counted(kind, n, want)
}

// counted compares how many records of a kind the backup has with its manifest.
func (e *Entry) counted(kind byte, n, want int64) error {
	if n == want {
		return nil
	}
	return badError{fmt.Errorf("the backup %s has %d records of kind %c, and %d were saved", e.Name, n, kind, want)}
}

// Leases is of datadir.Source: those of the last backup; if that is not restored to its end,
// those of its parent, too, since one may have ended meanwhile; and those that only keys know.
func (s *Reading) Leases(each func(id, ttl, remaining int64) error) error {
	s.Lost = 0
	seen := map[int64]bool{}
	last := s.plan.Last()
	of := []*Entry{last}
	if before := s.plan.before(); before != last {
		of = append(of, before)
	}
	for _, e := range of {
		err := s.stateOf(e, recordLease, e.Manifest.Leases, func(body []byte) error {
			id, ttl, remaining, err := decodeLease(body)
			if err != nil || seen[id] {
				return err
			}
			seen[id] = true
			return each(id, ttl, remaining)
		})
		if err != nil {
			return err
		}
	}
	if s.plan.whole() {
		return nil
	}
	return s.versions(last, func(v savedVersion) error {
		kv := new(mvccpb.KeyValue)
		if v.tombstone {
			return nil
		}
		if err := proto.Unmarshal(v.value, kv); err != nil {
			return badError{err}
		}
		if kv.Lease == 0 || seen[kv.Lease] {
			return nil
		}
		seen[kv.Lease] = true
		s.Lost++
		return each(kv.Lease, LostLease, 0)
	})
}

// Auth is of datadir.Source. Between two backups users and roles are those of the earlier one.
func (s *Reading) Auth(each func(bucket, name string, value []byte) error) error {
	e := s.plan.before()
	return s.stateOf(e, recordAuth, e.Manifest.Auth, func(body []byte) error {
		bucket, name, value, err := decodeAuth(body)
		if err != nil {
			return err
		}
		return each(bucket, name, value)
	})
}

// Alarms is of datadir.Source.
func (s *Reading) Alarms() (alarms []*pb.AlarmMember, err error) {
	e := s.plan.before()
	for _, a := range e.Manifest.Alarms {
		alarms = append(alarms, &pb.AlarmMember{MemberID: a.Member, Alarm: pb.AlarmType(a.Alarm)})
	}
	return alarms, nil
}
