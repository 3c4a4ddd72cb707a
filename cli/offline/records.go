package offline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/belaydb/belay/backup"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/neighbours"
	"github.com/belaydb/belay/timemap"
)

// What a member notes beside its data: each may be missing, and is lost without harm.

func inspectTimes(p *inspection, paths datadir.Paths, _ string) error {
	path := filepath.Join(paths.Member, "times")
	points, whole, err := timemap.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, at := range points {
		record := struct {
			Kind     string    `json:"kind"`
			Time     time.Time `json:"time"`
			Revision int64     `json:"revision"`
		}{"time", at.Time.UTC(), at.Revision}
		if err := p.tell(record, "%s revision %d", record.Time.Format("2006-01-02T15:04:05.000Z"), record.Revision); err != nil {
			return err
		}
	}
	if !whole {
		return p.damage(path, int64(len(points))*timemap.RecordBytes, "a record that is torn, or does not follow the one before; what is behind it is not read")
	}
	return nil
}

func inspectNeighbours(p *inspection, paths datadir.Paths, _ string) error {
	files, err := neighbours.RecordFiles(paths.Member)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := neighbours.Walk(file, func(offset int64, line []byte, s *neighbours.Sample) error {
			if s == nil {
				return p.damage(file, offset, "a line that is torn, or does not match its checksum")
			}
			_, err := fmt.Fprintf(p.out, "%s\n", line) // text, too: it is one object a line
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// inspectHealing shows healing.json, and whose the copies are that were set aside.
func inspectHealing(p *inspection, _ datadir.Paths, dataDir string) error {
	fs := datadir.FS()
	path := filepath.Join(dataDir, "healing.json")
	switch h, err := datadir.ReadHealing(fs, datadir.PathsOf(dataDir, "")); {
	case datadir.IsDamage(err):
		if err := p.damage(path, 0, err.Error()); err != nil {
			return err
		}
	case err != nil:
		return err
	case h == nil:
		if err := p.tell(map[string]any{"kind": "healing", "healing": false}, "this member does not heal: there is no %s", path); err != nil {
			return err
		}
	default:
		h.Nonce, h.Before = "", "" // who knows them may heal in its place
		text, err := json.Marshal(h)
		if err != nil {
			return err
		}
		record := struct {
			Kind    string          `json:"kind"`
			File    string          `json:"file"`
			Content json.RawMessage `json:"content"`
		}{"healing", path, text}
		if err := p.tell(record, "%s %s", path, text); err != nil {
			return err
		}
	}
	copies, err := filepath.Glob(filepath.Join(dataDir, "damaged-*"))
	if err != nil {
		return err
	}
	for _, dir := range copies {
		c := datadir.LookAt(fs, datadir.PathsOfCopy(dataDir, "", filepath.Base(dir)), "")
		if err := p.tell(map[string]any{"kind": "copy", "file": dir, "copy": c}, "%s was set aside: %s; see it with --copy %s", dir, c, filepath.Base(dir)); err != nil {
			return err
		}
	}
	return nil
}

// inspectDepot prints the files of backups.
func inspectDepot(ctx context.Context, p *inspection, f *depotFlags, name string, records bool) error {
	ctx, stop := interrupt.Context(ctx)
	defer stop()
	d, c, err := f.open(ctx)
	if err != nil {
		return err
	}
	found := false
	err = backup.Walk(ctx, d, c.Cluster, name, records, backup.NewPace(f.rate), func(at backup.Found) error {
		found = true
		switch at.Kind {
		case "damage":
			return p.damage(at.File, 0, at.Reason)
		case "manifest":
			m := at.Manifest
			return p.tell(at, "%s\n  %s of revision %d after %d, compacted %d, entry %d/%d, %d versions, %d leases, %d of users and roles, %d parts, %s",
				at.File, m.Kind, m.Revision, m.After, m.Compacted, m.Term, m.Index, m.Versions, m.Leases, m.Auth, len(m.Parts), m.Time.Format(time.RFC3339))
		case "proof":
			result := "good"
			if !at.Proof.Good {
				result = "bad: " + at.Proof.Error
			}
			return p.tell(at, "%s\n  %s, restored %v, by %s at %s", at.File, result, at.Proof.Restored, at.Proof.By, at.Proof.Time.Format(time.RFC3339))
		case "part":
			if at.Part == nil {
				return p.tell(at, "%s\n  %s; %s", at.File, show.Bytes(at.Bytes), at.Reason)
			}
			return p.tell(at, "%s\n  %d records of %s, %s, sum and count as in the manifest", at.File, at.Part.Records, at.Part.Holds, show.Bytes(at.Bytes))
		case "version":
			var text bytes.Buffer
			fmt.Fprintf(&text, "version %q at %d.%d", at.Key, at.Revision, at.Sub)
			if at.Tombstone {
				text.WriteString(" deleted")
			} else {
				fmt.Fprintf(&text, ", %d bytes", at.Bytes)
			}
			if at.Lease != "" {
				fmt.Fprintf(&text, ", lease %s", at.Lease)
			}
			return p.tell(at, "    %s", &text)
		case "lease":
			return p.tell(at, "    lease %s TTL %d s, remaining %d s", at.Lease, at.TTL, at.Remaining)
		case "auth":
			return p.tell(at, "    auth %s, %d bytes", at.Name, at.Bytes)
		}
		return p.tell(at, "%s\n  no file that Belay writes", at.File)
	})
	if err == nil && name != "" && !found {
		err = fmt.Errorf("there is no backup %s in %s", name, d)
	}
	return err
}
