package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
)

// ErrGap says that no increment can follow a backup: a compaction took revisions after it, or its
// history is another one.
var ErrGap = errors.New("no increment can follow that backup")

// An Origin is who saves.
type Origin struct {
	Cluster, Member uint64
	MemberName      string
}

// What is saved, and how.
type saving struct {
	Origin
	Parent *Entry     // nil: a full backup
	Time   time.Time  // of the view
	Times  []Sighting // since the parent
	Hash   bool       // compute HashKV, a pass over all of the view
	Pace   *Pace
	// Progress, if set, is told how many bytes of records were saved so far.
	Progress func(raw int64)
}

// save makes a backup of a view. What it leaves when it fails has no manifest.
func save(ctx context.Context, d Depot, view *mvcc.View, s saving) (*Entry, error) {
	if err := view.Err(); err != nil {
		return nil, err
	}
	stored, err := state.ReadStored(view.Reader())
	if err != nil {
		return nil, err
	}
	content, err := snapshotfile.ContentOf(view, stored)
	if err != nil {
		return nil, err
	}
	m := &Manifest{
		Format: formatVersion, Kind: Full, Belay: version.Belay,
		Cluster: clusterFolder(s.Cluster), Member: fmt.Sprintf("%016x", s.Member), MemberName: s.MemberName,
		Time: s.Time.UTC(), Revision: view.Rev(), Compacted: view.CompactRevision(), Index: content.Index, Term: content.Term,
		ClusterVersion: content.ClusterVersion, Times: s.Times,
	}
	if p := s.Parent; p != nil {
		if err := follows(ctx, view, p.Manifest); err != nil {
			return nil, err
		}
		m.Kind, m.Parent, m.ParentSeal, m.After = Increment, p.Name, p.seal, p.Manifest.Revision
	}
	for _, member := range content.Members {
		m.Members = append(m.Members, Member{ID: fmt.Sprintf("%016x", member.ID), Name: member.Name, PeerURLs: member.PeerURLs,
			ClientURLs: member.ClientURLs, Learner: member.IsLearner})
	}
	for _, a := range content.Alarms {
		m.Alarms = append(m.Alarms, Alarm{a.MemberID, int32(a.Alarm)})
	}
	if m.Newest, err = digestOf(ctx, view, m.Revision); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s-%s-r%d-%s", m.Time.Format(nameTime), m.Kind, m.Revision, m.Member)
	w := partsWriter{ctx: ctx, d: d, folder: path.Join(m.Cluster, name), pace: s.Pace, progress: s.Progress}
	if items, err := d.List(ctx, w.folder); err != nil || len(items) > 0 {
		return nil, errors.Join(err, fmt.Errorf("%s exists in %s, or cannot be looked at", w.folder, d))
	}
	if err := w.all(m, view, content); err != nil {
		return nil, err
	}
	m.Parts = w.parts
	if s.Hash {
		hash, err := view.HashState(ctx, m.Revision)
		if err != nil {
			return nil, err
		}
		m.Hash = &hash
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("what was saved cannot be: %w", err)
	}
	// Every part is durable: now the folder may become a backup.
	b, sum, err := seal(m)
	if err == nil {
		err = d.Write(ctx, path.Join(w.folder, manifestName), b)
	}
	if err != nil {
		return nil, err
	}
	return &Entry{Name: name, Manifest: m, seal: sum, parent: s.Parent}, nil
}

// follows says whether an increment after p can be made of a view; the error is ErrGap.
func follows(ctx context.Context, view *mvcc.View, p *Manifest) error {
	switch {
	case view.CompactRevision() > p.Revision:
		return fmt.Errorf("%w: a compaction at revision %d took what came after revision %d", ErrGap, view.CompactRevision(), p.Revision)
	case view.Rev() < p.Revision:
		return fmt.Errorf("%w: it is of revision %d, and the newest is %d", ErrGap, p.Revision, view.Rev())
	}
	digest, err := digestOf(ctx, view, p.Revision)
	if err != nil {
		return err
	}
	if digest != p.Newest || digest == "" && p.Revision > 1 {
		return fmt.Errorf("%w: revision %d is another one there", ErrGap, p.Revision)
	}
	return nil
}

// digestOf is the SHA-256 of the versions of one revision; empty: there are none.
func digestOf(ctx context.Context, view *mvcc.View, rev int64) (string, error) {
	h, found := sha256.New(), false
	beyond := errors.New("beyond")
	err := view.RevisionsAfter(ctx, rev-1, func(main, sub int64, tombstone bool, value []byte) error {
		if main > rev {
			return beyond
		}
		found = true
		h.Write(appendVersion(nil, main, sub, tombstone, value))
		return nil
	})
	if errors.Is(err, beyond) {
		err = nil
	}
	if err != nil || !found {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// partsWriter divides records into parts, and writes each when it is full.
type partsWriter struct {
	ctx      context.Context
	d        Depot
	folder   string
	pace     *Pace
	progress func(int64)

	enc     *zstd.Encoder
	parts   []Part
	holds   string
	raw     []byte
	records int64
	saved   int64 // bytes of records in parts
}

func (w *partsWriter) all(m *Manifest, view *mvcc.View, content snapshotfile.Content) (err error) {
	if w.enc, err = newEncoder(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.enc.Close()) }()
	w.holds = partState
	err = content.Leases(func(id, ttl, remaining int64) error {
		m.Leases++
		w.raw = appendLease(w.raw, id, ttl, remaining)
		return w.added()
	})
	if err != nil {
		return err
	}
	if content.Auth != nil {
		err := content.Auth(func(bucket, name string, value []byte) error {
			m.Auth++
			w.raw = appendAuth(w.raw, bucket, name, value)
			return w.added()
		})
		if err != nil {
			return err
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.holds = partVersions
	err = view.RevisionsAfter(w.ctx, m.After, func(main, sub int64, tombstone bool, value []byte) error {
		m.Versions++
		w.raw = appendVersion(w.raw, main, sub, tombstone, value)
		return w.added()
	})
	if err != nil {
		return err
	}
	return w.flush()
}

func (w *partsWriter) added() error {
	w.records++
	if len(w.raw) < partBytes {
		return nil
	}
	return w.flush()
}

func (w *partsWriter) flush() error {
	if w.records == 0 {
		return nil
	}
	b, p := encodePart(w.enc, len(w.parts), w.holds, w.records, w.raw)
	if err := w.pace.wait(w.ctx, p.Bytes); err != nil {
		return err
	}
	if err := w.d.Write(w.ctx, path.Join(w.folder, p.Name), b); err != nil {
		return err
	}
	w.parts = append(w.parts, p)
	w.saved += p.Raw
	if w.progress != nil {
		w.progress(w.saved)
	}
	w.records, w.raw = 0, w.raw[:0]
	if cap(w.raw) > 2*partBytes {
		w.raw = nil
	}
	return nil
}
