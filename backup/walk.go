package backup

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// A Found is what Walk comes upon in a depot, as JSON: a file, a record of a part, or damage.
type Found struct {
	// Kind is manifest, proof, part, version, lease, auth, damage, or unknown: a file that no Belay
	// writes there.
	Kind string `json:"kind"`
	File string `json:"file"` // in the depot
	// Bytes is the size of the file, or of a record's value.
	Bytes  int64  `json:"bytes,omitempty"`
	Reason string `json:"reason,omitempty"` // of damage; of a part, why it was not read

	Manifest *Manifest `json:"manifest,omitempty"` // of a manifest
	Proof    *Proof    `json:"proof,omitempty"`    // of a proof
	Part     *Part     `json:"part,omitempty"`     // of a part, as its manifest has it

	Revision  int64  `json:"revision,omitempty"` // of a version, as what follows
	Sub       int64  `json:"sub,omitempty"`
	Key       []byte `json:"key,omitempty"`
	Tombstone bool   `json:"tombstone,omitempty"`
	Lease     string `json:"lease,omitempty"` // of a version or a lease: the id in hexadecimal
	TTL       int64  `json:"ttl,omitempty"`   // of a lease, seconds
	Remaining int64  `json:"remaining,omitempty"`
	Name      string `json:"name,omitempty"` // of auth: bucket and name, of which the value is not told
}

// Walk reads every file of a cluster's backups, or of the one that is named, and calls each for what
// it finds, with records for all that is in the parts, too. It writes nothing, and may run while a
// member makes a backup. Memory is bounded by a part, some 16 MiB, and by the longest manifest.
//
// What is wrong with a file is a Found of kind damage; an error is one of reaching the depot, or
// of each.
func Walk(ctx context.Context, d Depot, cluster, name string, records bool, pace *Pace, each func(Found) error) error {
	items, err := d.List(ctx, cluster)
	if err != nil {
		return err
	}
	w := walk{ctx: ctx, d: d, records: records, pace: pace, each: each}
	for _, item := range items {
		folder := path.Join(cluster, item.Name)
		if name != "" && item.Name != name {
			continue
		}
		if _, ok := timeOf(item.Name); !ok || !item.Folder {
			err = each(Found{Kind: "unknown", File: folder, Bytes: item.Bytes})
		} else {
			err = w.backup(cluster, folder)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// walk is one call of Walk.
type walk struct {
	ctx     context.Context
	d       Depot
	records bool
	pace    *Pace
	each    func(Found) error
}

func (w *walk) damage(file string, err error) error {
	return w.each(Found{Kind: "damage", File: file, Reason: err.Error()})
}

// backup looks at one folder.
func (w *walk) backup(cluster, folder string) error {
	items, err := w.d.List(w.ctx, folder)
	if err != nil {
		return err
	}
	m, seal, err := w.manifest(cluster, folder, items)
	if err != nil {
		return err
	}
	for _, item := range items {
		file := path.Join(folder, item.Name)
		part := -1
		if m != nil {
			part = slices.IndexFunc(m.Parts, func(p Part) bool { return p.Name == item.Name })
		}
		switch {
		case item.Name == manifestName && !item.Folder: // it was the first
		case item.Name == proofName && !item.Folder:
			err = w.proof(file, seal)
		case part >= 0:
			err = w.part(folder, m.Parts[part], item.Bytes)
		case m == nil && path.Ext(item.Name) == ".part":
			err = w.each(Found{Kind: "part", File: file, Bytes: item.Bytes, Reason: "there is no manifest to compare it with"})
		default:
			err = w.each(Found{Kind: "unknown", File: file, Bytes: item.Bytes})
		}
		if err != nil {
			return err
		}
	}
	if m == nil {
		return nil
	}
	for _, p := range m.Parts {
		if !slices.ContainsFunc(items, func(item Item) bool { return item.Name == p.Name }) {
			if err := w.damage(path.Join(folder, p.Name), errors.New("it is missing")); err != nil {
				return err
			}
		}
	}
	return nil
}

// manifest is nil if there is none that can be read.
func (w *walk) manifest(cluster, folder string, items []Item) (m *Manifest, sum string, err error) {
	i := slices.IndexFunc(items, func(item Item) bool { return item.Name == manifestName })
	if i < 0 {
		return nil, "", nil
	}
	file := path.Join(folder, manifestName)
	m = new(Manifest)
	switch sum, err = w.sealed(file, m); {
	case err == nil:
		err = m.check()
	case !bad(err):
		return nil, "", err
	}
	if err == nil && m.Cluster != cluster {
		err = fmt.Errorf("it is of the cluster %s", m.Cluster)
	}
	if err != nil {
		return nil, "", w.damage(file, err)
	}
	return m, sum, w.each(Found{Kind: "manifest", File: file, Bytes: items[i].Bytes, Manifest: m})
}

func (w *walk) proof(file, seal string) error {
	p := new(Proof)
	_, err := w.sealed(file, p)
	if err != nil && !bad(err) {
		return err
	}
	if err == nil && seal != "" && p.Seal != seal {
		err = errors.New("it is about another manifest")
	}
	if err != nil {
		return w.damage(file, err)
	}
	return w.each(Found{Kind: "proof", File: file, Proof: p})
}

// sealed decodes a file. What is wrong with its content is a badError.
func (w *walk) sealed(file string, v any) (sum string, err error) {
	b, err := readAll(w.ctx, w.d, file, maxSealedBytes)
	if errors.Is(err, iofs.ErrNotExist) {
		return "", badError{errors.New("it is missing")} // removed meanwhile
	}
	if err != nil {
		return "", err
	}
	if sum, err = unseal(b, v); err != nil {
		return "", badError{err}
	}
	return sum, nil
}

// part compares a part with its manifest, and tells what is in it.
func (w *walk) part(folder string, p Part, bytes int64) error {
	file := path.Join(folder, p.Name)
	raw, err := readPart(w.ctx, w.d, folder, p, w.pace)
	if err != nil && !bad(err) {
		return err
	}
	if err != nil {
		return w.damage(file, err)
	}
	if err := w.each(Found{Kind: "part", File: file, Bytes: bytes, Part: &p}); err != nil {
		return err
	}
	n := int64(0)
	err = eachRecord(raw, func(kind byte, body []byte) error {
		n++
		f, err := foundRecord(kind, body)
		if err != nil || !w.records {
			return err
		}
		f.File = file
		if err := w.each(f); err != nil {
			return eachError{err}
		}
		return nil
	})
	if each, ok := errors.AsType[eachError](err); ok {
		return each.error
	}
	if err == nil && n != p.Records {
		err = fmt.Errorf("it has %d records, and %d were saved", n, p.Records)
	}
	if err != nil {
		return w.damage(file, err)
	}
	return nil
}

// An eachError is one of who is told, and not about a record.
type eachError struct{ error }

func foundRecord(kind byte, body []byte) (f Found, err error) {
	switch kind {
	case recordVersion:
		v, err := decodeVersion(body)
		if err != nil {
			return f, err
		}
		kv := new(mvccpb.KeyValue)
		if err := proto.Unmarshal(v.value, kv); err != nil {
			return f, err
		}
		f = Found{Kind: "version", Revision: v.main, Sub: v.sub, Key: kv.Key, Tombstone: v.tombstone, Bytes: int64(len(kv.Value))}
		if kv.Lease != 0 {
			f.Lease = fmt.Sprintf("%x", uint64(kv.Lease))
		}
		return f, nil
	case recordLease:
		id, ttl, remaining, err := decodeLease(body)
		return Found{Kind: "lease", Lease: fmt.Sprintf("%x", uint64(id)), TTL: ttl, Remaining: remaining}, err
	case recordAuth:
		bucket, name, value, err := decodeAuth(body)
		return Found{Kind: "auth", Name: bucket + " " + name, Bytes: int64(len(value))}, err
	}
	return f, errRecord
}
