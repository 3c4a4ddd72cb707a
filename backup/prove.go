package backup

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
)

// A Scratch fills a store of its own in dir, which does not exist, calls look with a view of it and
// how many versions were written, and removes dir; see datadir.Scratch.
type Scratch func(ctx context.Context, dir string, r *Reading, look func(view *mvcc.View, versions int) error) error

// A Trial is where backups are restored to be tried. The zero value: nowhere, so their files are read
// and compared with their sums.
type Trial struct {
	Scratch Scratch
	Dir     string // does not exist, on a disk with room for all the data
}

// readBack reads every file of one backup, and compares sums and counts with its manifest.
func readBack(ctx context.Context, d Depot, cluster string, e *Entry, pace *Pace) error {
	return errors.Join(
		readState(ctx, d, cluster, e, pace),
		alone(ctx, d, cluster, e, pace).versions(e, func(savedVersion) error { return nil }),
	)
}

// readState is readBack for leases, users and roles alone.
func readState(ctx context.Context, d Depot, cluster string, e *Entry, pace *Pace) error {
	var leases, accounts int64
	err := alone(ctx, d, cluster, e, pace).records(e, partState, func(kind byte, body []byte) (err error) {
		switch kind {
		case recordLease:
			leases++
			_, _, _, err = decodeLease(body)
		case recordAuth:
			accounts++
			_, _, _, err = decodeAuth(body)
		default:
			err = errRecord
		}
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(e.counted(recordLease, leases, e.Manifest.Leases), e.counted(recordAuth, accounts, e.Manifest.Auth))
}

// alone reads one backup without its ancestors.
func alone(ctx context.Context, d Depot, cluster string, e *Entry, pace *Pace) *Reading {
	return Read(ctx, d, &Plan{Cluster: cluster, Chain: []*Entry{e}, Revision: e.Manifest.Revision}, pace)
}

// prove tries a backup, and says in a proof what came of it: by reading its files back and, with a
// trial, by restoring it there with its ancestors and comparing HashKV and counts. The
// error is one of reaching the depot or of the scratch store; it is nil if the backup is bad.
func prove(ctx context.Context, d Depot, c *Catalog, e *Entry, t Trial, by string, pace *Pace) (Proof, error) {
	p := Proof{Format: formatVersion, Seal: e.seal, By: by, Good: true}
	var err error
	if t.Scratch == nil {
		err = readBack(ctx, d, c.Cluster, e, pace)
	} else {
		p.Restored = true
		err = restoreAndCompare(ctx, d, c.planOf(e, e.Manifest.Revision), t, pace, &p)
	}
	p.Time = time.Now().UTC()
	if err != nil && !bad(err) {
		return p, err
	}
	if err != nil {
		p.Good, p.Error, p.Hash = false, err.Error(), nil
	}
	return p, nil
}

func restoreAndCompare(ctx context.Context, d Depot, plan *Plan, t Trial, pace *Pace, p *Proof) error {
	versions, m := int64(0), plan.Last().Manifest
	for _, e := range plan.Chain {
		versions += e.Manifest.Versions
		if e == plan.Last() {
			break
		}
		// The restore passes over the ancestors' state; they are to be proved with their child.
		if err := readState(ctx, d, plan.Cluster, e, pace); err != nil {
			return err
		}
	}
	return t.Scratch(ctx, t.Dir, Read(ctx, d, plan, pace), func(view *mvcc.View, restored int) error {
		leases, records := int64(0), int64(0)
		err := errors.Join(
			lease.Records(view.Reader(), func(lease.ID, int64, int64) error { leases++; return nil }),
			auth.Records(view.Reader(), func(auth.Record) error { records++; return nil }),
		)
		if err != nil {
			return err
		}
		p.Versions, p.Leases = int64(restored), leases
		differ := func(what string, have, want any) error {
			return badError{fmt.Errorf("restored, it has the %s %v, and the member had %v", what, have, want)}
		}
		switch {
		case view.Rev() != m.Revision:
			return differ("revision", view.Rev(), m.Revision)
		case view.CompactRevision() != m.Compacted:
			return differ("compaction", view.CompactRevision(), m.Compacted)
		case p.Versions != versions:
			return differ("number of versions", restored, versions)
		case leases != m.Leases:
			return differ("number of leases", leases, m.Leases)
		case records != m.Auth:
			return differ("number of records of users and roles", records, m.Auth)
		}
		if m.Hash == nil {
			return nil
		}
		hash, err := view.HashState(ctx, m.Revision)
		if err != nil {
			return err
		}
		if hash != *m.Hash {
			return differ("HashKV", hash, *m.Hash)
		}
		p.Hash = &hash
		return nil
	})
}

// writeProof puts a proof beside the manifest that it is about.
func writeProof(ctx context.Context, d Depot, cluster string, e *Entry, p Proof) error {
	b, _, err := seal(p)
	if err == nil {
		err = d.Write(ctx, path.Join(cluster, e.Name, proofName), b)
	}
	if err == nil {
		e.Proof = &p
	}
	return err
}

// Verify tries a backup as a Maker does, for a command: it writes nothing into the depot. The
// error is one of reaching the depot or of the scratch store; what is wrong with the backup is in
// the proof.
func Verify(ctx context.Context, d Depot, c *Catalog, e *Entry, t Trial, pace *Pace) (Proof, error) {
	return prove(ctx, d, c, e, t, "command", pace)
}
