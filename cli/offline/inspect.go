package offline

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/spf13/cobra"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	raftcommand "github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/store"
)

// inspection is one run of an inspector: where it prints, and how.
type inspection struct {
	out     *bufio.Writer
	json    bool
	damaged int
}

// tell prints one record: as JSON, or as text.
func (p *inspection) tell(record any, format string, args ...any) error {
	if !p.json {
		_, err := fmt.Fprintf(p.out, format+"\n", args...)
		return err
	}
	line, err := json.Marshal(record)
	if err == nil {
		_, err = p.out.Write(append(line, '\n'))
	}
	return err
}

type damage struct {
	Kind   string `json:"kind"` // "damage"
	File   string `json:"file"`
	Offset int64  `json:"offset,omitempty"`
	Reason string `json:"reason"`
}

func (p *inspection) damage(file string, offset int64, reason string) error {
	p.damaged++
	return p.tell(damage{"damage", file, offset, reason}, "damage  %s at offset %d: %s", file, offset, reason)
}

// inspectCommand has one inspector for each kind of file that a member writes.
func inspectCommand(stdout io.Writer) *cobra.Command {
	var walDir, output, folder string
	cmd := &cobra.Command{
		Use:   "inspect <part>",
		Short: "Prints what a member's files hold, or those of backups; changes nothing, and the member may be running",
		Long: `Prints what the files in a member's data directory hold, or the files of backups.
` + "`inspect files`" + ` lists all of them, and which part shows which. Nothing is written,
made or locked, so the member may be running: then the store is shown as its files
are, which is behind what the member has applied, and the end of the log may be half
written. What cannot be read is a line "damage" with file and offset; the rest is
printed, and the exit code is 1.`,
	}
	cmd.PersistentFlags().StringVar(&walDir, "wal-dir", "", "the member's --wal-dir, if it has one")
	cmd.PersistentFlags().StringVar(&folder, "copy", "member", "another folder of the data directory, such as damaged-TIME, with data that was set aside")
	cmd.PersistentFlags().StringVarP(&output, "output", "o", "text", "text, or json: one object a line")

	// inspect runs an inspector.
	inspect := func(run func(p *inspection) error) error {
		if output != "text" && output != "json" {
			return failf(codeBadArgs, "%s not supported as output: text or json", output)
		}
		p := &inspection{out: bufio.NewWriter(stdout), json: output == "json"}
		err := run(p)
		if err := errors.Join(err, p.out.Flush()); err != nil {
			return err
		}
		if p.damaged > 0 {
			return failf(codeError, "%d damaged places", p.damaged)
		}
		return nil
	}

	add := func(use, short string, run func(p *inspection, paths datadir.Paths, dataDir string) error) *cobra.Command {
		part := &cobra.Command{
			Use: use + " <data-dir>", Short: short,
			RunE: func(_ *cobra.Command, args []string) error {
				if len(args) != 1 {
					return failf(codeBadArgs, "inspect %s requires exactly one argument, the data directory", use)
				}
				wanted := filepath.Join(args[0], folder)
				if use == "files" || use == "healing" { // they look beside it, too
					wanted = args[0]
				}
				if _, err := os.Stat(wanted); err != nil {
					return err
				}
				paths := datadir.PathsOf(args[0], walDir)
				if folder != "member" {
					paths = datadir.PathsOfCopy(args[0], walDir, folder)
				}
				return inspect(func(p *inspection) error { return run(p, paths, args[0]) })
			},
		}
		cmd.AddCommand(part)
		return part
	}
	add("identity", "whose data it is, and whether the parts belong together", inspectIdentity)
	add("events", "the record of events that verdicts are made from", inspectEvents)
	add("files", "every file there is, and which part shows what it holds", inspectFiles)
	add("times", "when which revision was the newest", inspectTimes)
	add("neighbours", "the record of who wrote to the log's disk, one object a line", inspectNeighbours)
	add("healing", "how far a member that heals has come, and the copies of its data that were set aside", inspectHealing)
	cmd.AddCommand(inspectBackup(inspect))

	var entries struct{ from, to uint64 }
	log := add("log", "the raft log: segments, groups, entries, hard states", func(p *inspection, paths datadir.Paths, _ string) error {
		return inspectLog(p, paths.Log, entries.from, entries.to)
	})
	log.Flags().Uint64Var(&entries.from, "from-index", 0, "leave out entries before this index, and groups without others")
	log.Flags().Uint64Var(&entries.to, "to-index", math.MaxUint64, "leave out entries after this index")

	var keys storeFilter
	st := add("store", "the state: versions of keys, leases, users, members and the rest", func(p *inspection, paths datadir.Paths, _ string) error {
		return inspectStore(p, paths.Store, keys)
	})
	st.Flags().StringVar(&keys.prefix, "prefix", "", "only keys that begin with this, and nothing else")
	st.Flags().Int64Var(&keys.from, "from-rev", 0, "only versions from this revision on, and nothing else")
	st.Flags().Int64Var(&keys.to, "to-rev", math.MaxInt64, "only versions up to this revision, and nothing else")
	st.Flags().BoolVar(&keys.values, "values", false, "print values, too")
	return cmd
}

// inspectBackup takes no data directory.
func inspectBackup(inspect func(func(p *inspection) error) error) *cobra.Command {
	var f depotFlags
	var records bool
	cmd := &cobra.Command{
		Use: "backup [NAME] --from {dir}", Short: "manifests, proofs and parts of backups, or of one: every file is read, and compared with its manifest",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return failf(codeBadArgs, "inspect backup takes at most one argument, the name of a backup")
			}
			name := strings.Join(args, "")
			return inspect(func(p *inspection) error { return inspectDepot(cmd.Context(), p, &f, name, records) })
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVar(&records, "records", false, "print what is in the parts: versions without their values, leases, names of users and roles")
	return cmd
}

func inspectIdentity(p *inspection, paths datadir.Paths, dataDir string) error {
	for _, path := range []string{filepath.Join(paths.Member, "identity.json"), filepath.Join(paths.Store, "identity.json")} {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			text = []byte("null")
		} else if err != nil {
			return err
		}
		if !json.Valid(text) {
			if err := p.damage(path, 0, "it is no JSON"); err != nil {
				return err
			}
			continue
		}
		record := struct {
			Kind    string          `json:"kind"`
			File    string          `json:"file"`
			Content json.RawMessage `json:"content"`
		}{"identity", path, text}
		if err := p.tell(record, "%s %s", path, bytes.TrimSpace(text)); err != nil {
			return err
		}
	}
	meta, ok, err := raftlog.Peek(paths.Log, nil)
	if err != nil {
		return p.damage(paths.Log, 0, err.Error())
	}
	if ok {
		record := map[string]any{"kind": "log", "member": fmt.Sprintf("%x", meta.MemberID), "cluster": fmt.Sprintf("%x", meta.ClusterID), "log": fmt.Sprintf("%x", meta.LogID)}
		if err := p.tell(record, "%s member=%x cluster=%x log=%x", paths.Log, meta.MemberID, meta.ClusterID, meta.LogID); err != nil {
			return err
		}
	}
	verdict := "the parts belong together"
	if !ok {
		verdict = "there is no log"
	}
	if _, err := datadir.Look(datadir.FS(), paths); err != nil {
		p.damaged++
		verdict = err.Error()
	}
	return p.tell(map[string]string{"kind": "verdict", "verdict": verdict}, "verdict: %s", verdict)
}

func inspectEvents(p *inspection, paths datadir.Paths, _ string) error {
	return evidence.ReadRecord(paths.Member, func(file string, offset int64, line []byte, event *evidence.Event) error {
		if event == nil {
			return p.damage(file, offset, "a line that is torn, or of another version")
		}
		if p.json {
			_, err := fmt.Fprintf(p.out, "%s\n", line)
			return err
		}
		return p.tell(nil, "%s", line)
	})
}

// entryFound adds to an entry what it asks for.
type entryFound struct {
	raftlog.Found
	Request string `json:"request,omitempty"`
	Key     []byte `json:"key,omitempty"`
}

func inspectLog(p *inspection, dir string, from, to uint64) error {
	var group *raftlog.Found // not printed yet
	filtered := from > 0 || to < math.MaxUint64
	return raftlog.Walk(dir, nil, func(f raftlog.Found) error {
		name := filepath.Base(f.File)
		switch f.Kind {
		case "damage":
			p.damaged++
			return p.tell(f, "damage  %s at offset %d: %s", f.File, f.Offset, f.Reason)
		case "meta":
			return p.tell(f, "%s member=%s cluster=%s log=%s", name, f.Member, f.Cluster, f.Log)
		case "segment":
			return p.tell(f, "%s first-group=%d synced=%d prev=%d/%d vote=%s commit=%d", name, f.Group, f.Synced, f.Term, f.Index, f.Vote, f.Commit)
		case "end":
			return p.tell(f, "end     %s at offset %d: %s", name, f.Offset, f.Reason)
		case "group":
			group = &f
			if filtered {
				return nil
			}
		case "entry":
			if f.Index < from || f.Index > to {
				return nil
			}
		default:
			if filtered {
				return nil
			}
		}
		if group != nil {
			g := *group
			group = nil
			if err := p.tell(g, "  %d: group %d synced=%d bytes=%d", g.Offset, g.Group, g.Synced, g.Bytes); err != nil || f.Kind == "group" {
				return err
			}
		}
		switch f.Kind {
		case "entry":
			e := entryFound{Found: f}
			e.Request, e.Key = requestOf(f)
			text := e.Request
			if e.Key != nil {
				text += fmt.Sprintf(" %q", e.Key)
			}
			return p.tell(e, "    entry %d/%d %s %d bytes %s", f.Term, f.Index, f.Type, f.Bytes, text)
		case "hard-state":
			return p.tell(f, "    hard-state term=%d vote=%s commit=%d", f.Term, f.Vote, f.Commit)
		}
		return p.tell(f, "    base %d/%d", f.Term, f.Index)
	})
}

// requestOf is what an entry asks for, and of a put or delete the key. Nothing else of it is shown:
// it may hold passwords.
func requestOf(f raftlog.Found) (name string, key []byte) {
	switch {
	case len(f.Data) == 0:
		return "nothing", nil
	case f.Type != raftpb.EntryNormal.String():
		var change raftpb.ConfChange
		if err := proto.Unmarshal(f.Data, &change); err != nil {
			return err.Error(), nil
		}
		return fmt.Sprintf("%s %x", change.GetType(), change.GetNodeId()), nil
	}
	request, err := raftcommand.Decode(f.Data)
	if err != nil {
		return err.Error(), nil
	}
	if request == nil {
		return "nothing", nil // of the API of version 2
	}
	request.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if field.Kind() == protoreflect.MessageKind && field.Name() != "header" {
			name = string(field.Name())
		}
		return true
	})
	switch {
	case request.Put != nil:
		key = slices.Clone(request.Put.Key)
	case request.DeleteRange != nil:
		key = slices.Clone(request.DeleteRange.Key)
	}
	return name, key
}

// storeFilter: with any part set, only versions of keys are printed.
type storeFilter struct {
	prefix   string
	from, to int64
	values   bool
}

func (f storeFilter) set() bool { return f.prefix != "" || f.from > 0 || f.to < math.MaxInt64 }

type storedVersion struct {
	Kind      string `json:"kind"` // "version"
	Key       []byte `json:"key"`
	Main      int64  `json:"revision"`
	Sub       uint32 `json:"sub,omitempty"`
	Tombstone bool   `json:"tombstone,omitempty"`
	Create    int64  `json:"create_revision,omitempty"`
	Version   int64  `json:"version,omitempty"`
	Lease     string `json:"lease,omitempty"` // hexadecimal
	Bytes     int    `json:"bytes"`
	Value     []byte `json:"value,omitempty"`
}

type storedOther struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Bytes int    `json:"bytes"`
	Value string `json:"value,omitempty"`
}

func inspectStore(p *inspection, dir string, f storeFilter) (err error) {
	st, err := store.OpenReadOnly(dir, store.Options{})
	if err != nil {
		if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
			return p.damage(info.Path, 0, err.Error())
		}
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	index, term := st.Applied()
	if err := p.tell(map[string]any{"kind": "applied", "index": index, "term": term}, "applied %d/%d", term, index); err != nil {
		return err
	}
	lower, upper := []byte{1, 0}, []byte{0xff, 0}
	if f.set() {
		lower, upper = store.UserKeysSpan()
		if f.prefix != "" { // keys that begin with it sort from it on, and end where one does not
			lower = store.AppendUserKeyPrefix(nil, []byte(f.prefix))
		}
	}
	for lower != nil {
		if lower, err = p.span(st, lower, upper, f); err != nil {
			return err
		}
	}
	return nil
}

// span prints from lower on. Behind a damaged file it returns where to go on; nil: it is done.
func (p *inspection) span(st *store.Store, lower, upper []byte, f storeFilter) (more []byte, err error) {
	it, err := st.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil { // its blob file is damaged, not the table
			path := st.Dir()
			if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
				path = info.Path
			}
			if err := p.damage(path, 0, fmt.Sprintf("the value of %q: %v", it.Key(), err)); err != nil {
				return nil, err
			}
			continue
		}
		if done, err := p.record(it.Key(), value, f); err != nil || done {
			return nil, err
		}
	}
	failed := it.Error()
	if failed == nil {
		return nil, nil
	}
	info := pebble.ExtractDataCorruptionInfo(failed)
	if info == nil {
		return nil, p.damage(st.Dir(), 0, failed.Error())
	}
	if err := p.damage(info.Path, 0, failed.Error()); err != nil {
		return nil, err
	}
	end := append(slices.Clone(info.Bounds.End.Key), 0) // behind it, whether it is in it or not
	if bytes.Compare(end, lower) <= 0 || bytes.Compare(end, upper) >= 0 {
		return nil, nil
	}
	// A bound must be a key: the beginning of the next key, without a version.
	if end[0] == 'k' {
		if prefix, _, _, _, ok := store.ParseUserKey(info.Bounds.End.Key); ok {
			end = append(slices.Clone(prefix[:len(prefix)-1]), 0, 0)
		}
	}
	return end, nil
}

// record prints one key of the store; done: nothing more fits the filter.
func (p *inspection) record(k, value []byte, f storeFilter) (done bool, err error) {
	if _, key, main, sub, ok := store.ParseUserKey(k); ok {
		if !strings.HasPrefix(string(key), f.prefix) {
			return true, nil
		}
		if int64(main) < f.from || int64(main) > f.to {
			return false, nil
		}
		v := storedVersion{Kind: "version", Key: key, Main: int64(main), Sub: sub, Tombstone: len(value) == 0, Bytes: len(value)}
		if v.Tombstone {
			return false, p.tell(v, "version %q at %d.%d deleted", key, main, sub)
		}
		stored, err := mvcc.ParseStored(value, int64(main))
		if err != nil {
			return false, p.damage("store", 0, fmt.Sprintf("the version of %q at %d.%d: %v", key, main, sub, err))
		}
		v.Create, v.Version, v.Bytes = stored.Create, stored.Version, len(stored.Value)
		if stored.Lease != 0 {
			v.Lease = fmt.Sprintf("%x", uint64(stored.Lease))
		}
		text := ""
		if f.values {
			v.Value = stored.Value
			text = fmt.Sprintf(" %q", stored.Value)
		}
		return false, p.tell(v, "version %q at %d.%d created %d version %d lease %x, %d bytes%s", key, main, sub, v.Create, v.Version, uint64(stored.Lease), v.Bytes, text)
	}
	o := nameOther(k, value)
	text := ""
	if o.Value != "" {
		text = " " + o.Value
	}
	return false, p.tell(o, "%-10s %s, %d bytes%s", o.Kind, o.Name, o.Bytes, text)
}

// nameOther names what is no version of a key. Values of users and roles are not shown: they hold
// hashes of passwords.
func nameOther(k, value []byte) storedOther {
	o := storedOther{Kind: "unknown", Name: fmt.Sprintf("%x", k), Bytes: len(value)}
	if main, sub, ok := store.ParseRevisionKey(k); ok && len(value) > 0 {
		o.Kind, o.Name, o.Value = "revision", fmt.Sprintf("%d.%d", main, sub), fmt.Sprintf("%q", value[1:])
	} else if id, ok := store.ParseLeaseKey(k); ok {
		o.Kind, o.Name = "lease", fmt.Sprintf("%x", uint64(id))
	} else if id, key, ok := store.ParseLeaseAttachmentKey(k); ok {
		o.Kind, o.Name, o.Value = "attachment", fmt.Sprintf("%x", uint64(id)), fmt.Sprintf("%q", key)
	} else if kind, name, ok := store.ParseAuthKey(k); ok {
		o.Kind, o.Name = map[byte]string{'u': "user", 'r': "role", 's': "auth"}[kind], name
	} else if id, ok := store.ParseMemberKey(k); ok {
		o.Kind, o.Name, o.Value = "member", fmt.Sprintf("%x", id), string(value)
	} else if id, ok := store.ParseRemovedMemberKey(k); ok {
		o.Kind, o.Name = "removed", fmt.Sprintf("%x", id)
	} else if alarm, id, ok := store.ParseAlarmKey(k); ok {
		o.Kind, o.Name = "alarm", fmt.Sprintf("%d of %x", alarm, id)
	} else if len(k) > 2 && k[0] == 'c' {
		o.Kind, o.Name, o.Value = "cluster", string(k[1:len(k)-1]), string(value)
	} else if len(k) > 2 && k[0] == 'z' {
		o.Kind, o.Name = "meta", string(k[1:len(k)-1])
		if len(value) == 8 || len(value) == 16 {
			o.Value = fmt.Sprint(binary.BigEndian.Uint64(value))
		}
	}
	return o
}
