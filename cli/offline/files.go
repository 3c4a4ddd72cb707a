package offline

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/belaydb/belay/datadir"
)

// A fileKind is a file that a member writes, and what shows its content.
type fileKind struct {
	pattern   string // as path.Match has it, below the member's folder; "/..." at the end: and all below
	what      string
	inspector string // of `belay util inspect`
}

// The inspectors of what has none of its own.
const (
	asText  = "files" // one line of text, which `inspect files` prints
	nothing = "-"     // it has no content, or none that is whole
	byEtcd  = "verify"
)

// memberFiles are the files in a member's folder, or in one that was set aside or is being made.
// docs/formats.md has them, too.
func memberFiles() []fileKind {
	return []fileKind{
		{"identity.json", "whose data this is", "identity"},
		{"snap", "stops an etcd that is started here by mistake", asText},
		{"log/META", "whose log this is", "log"},
		{"log/segment-*.log", "a segment of the log", "log"},
		{"log/spare-*", "a segment to be used next", nothing},
		{"log/LOCK", "held by who uses the log", nothing},
		{"log/META.tmp", "left by a crash", nothing},
		{"log.new/...", "the first log, being made", nothing},
		{"store/STORE", "the format of the store", asText},
		{"store/identity.json", "whose store this is", "identity"},
		{"store/incoming/...", "a snapshot that is being received", nothing},
		{"store/LOCK", "held by who uses the store", nothing},
		{"store/MANIFEST-*", "Pebble's", "store"},
		{"store/OPTIONS-*", "Pebble's", "store"},
		{"store/marker.*", "Pebble's", "store"},
		{"store/*.sst", "Pebble's: keys and values", "store"},
		{"store/*.blob", "Pebble's: large values", "store"},
		{"store/segments/...", "segments of the raft log that have large values", nothing},
		{"store/*.log", "Pebble's, empty", "store"},
		{"store/*.dbtmp", "Pebble's, being written", nothing},
		{"events-[01].json", "the record of events", "events"},
		{"neighbours-[01].log", "who wrote to the log's disk", "neighbours"},
		{"times", "when which revision was the newest", "times"},
		{"times.tmp", "left by a crash", nothing},
		{"backup-scratch/...", "a backup that is being proved", nothing},
	}
}

// rootFiles are those beside the member's folder.
func rootFiles() []fileKind {
	return []fileKind{
		{"healing.json", "how far this member has come in healing", "healing"},
		{"fixtures/*/cert.pem", "a certificate that the member made for itself", asText},
		{"fixtures/*/key.pem", "the key of that certificate", nothing},
		{"etcd-snapshot-*.db.tmp", "a snapshot being built for a client", nothing},
		{"member.etcd/...", "etcd's data, kept by `belay util migrate`", byEtcd},
		{"*.tmp", "left by a crash", nothing},
		{".touch", "left by a crash", nothing},
	}
}

// memberFolders are the names under which the data directory may have a member's folder.
func memberFolders() []string {
	return []string{"member", "damaged-*", "member.restoring", "member.migrating", "member.belay"}
}

func (k fileKind) fits(name string) bool {
	if folder, ok := strings.CutSuffix(k.pattern, "/..."); ok {
		return strings.HasPrefix(name, folder+"/")
	}
	ok, err := path.Match(k.pattern, name)
	return ok && err == nil
}

// kindOf finds what a file is. name is relative to the data directory, with slashes, or, with apart,
// to a directory for the log alone.
func kindOf(name string, apart bool) (k fileKind, ok bool) {
	first, rest, deep := strings.Cut(name, "/")
	first = strings.TrimSuffix(first, ".tmp")
	for _, folder := range memberFolders() {
		if is, err := path.Match(folder, first); !deep || err != nil || !is {
			continue
		}
		if apart && folder == "damaged-*" { // there it is the log itself
			rest = "log/" + rest
		}
		name = rest
		return firstKind(memberFiles(), name)
	}
	if apart && (first == "log" || first == "log.new") {
		return firstKind(memberFiles(), name)
	}
	return firstKind(rootFiles(), name)
}

func firstKind(kinds []fileKind, name string) (fileKind, bool) {
	for _, try := range []string{name, strings.TrimSuffix(name, ".tmp")} {
		for _, k := range kinds {
			if k.fits(try) {
				if try != name {
					k.what, k.inspector = k.what+", being written", nothing
				}
				return k, true
			}
		}
	}
	return fileKind{}, false
}

// listedFile is a line of `inspect files`.
type listedFile struct {
	Kind      string `json:"kind"` // "file", or "unknown": none of Belay's
	File      string `json:"file"`
	Bytes     int64  `json:"bytes"`
	What      string `json:"what,omitempty"`
	Inspector string `json:"inspector,omitempty"`
	Content   string `json:"content,omitempty"`
}

// maxTextBytes bounds what is printed of a file as text.
const maxTextBytes = 64 << 10

func inspectFiles(p *inspection, paths datadir.Paths, dataDir string) error {
	logDir := filepath.Dir(paths.Log)
	if apart := logDir != paths.Member; !apart {
		return p.listFiles(dataDir, "", false)
	}
	return errors.Join(p.listFiles(dataDir, logDir, false), p.listFiles(logDir, dataDir, true))
}

// listFiles lists one directory, without another that may lie in it. What vanishes meanwhile is left
// out.
func (p *inspection) listFiles(dir, without string, apart bool) error {
	return filepath.WalkDir(dir, func(full string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist) && full != dir:
			return nil
		case err != nil:
			return err
		case d.IsDir() && full != dir && without != "" && full == filepath.Clean(without):
			return filepath.SkipDir
		case d.IsDir():
			return nil
		}
		rel, err := filepath.Rel(dir, full)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		l := listedFile{Kind: "unknown", File: full, Bytes: info.Size(), What: "no file that Belay writes"}
		if k, ok := kindOf(filepath.ToSlash(rel), apart); ok {
			l.Kind, l.What, l.Inspector = "file", k.what, k.inspector
		}
		text := ""
		if l.Inspector == asText && info.Size() <= maxTextBytes {
			content, err := os.ReadFile(full)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			l.Content = string(content)
			if first, more, _ := strings.Cut(strings.TrimSpace(l.Content), "\n"); more == "" {
				text = fmt.Sprintf(": %s", first)
			}
		}
		return p.tell(l, "%-10s %12d  %s  (%s%s)", l.Inspector, l.Bytes, full, l.What, text)
	})
}
