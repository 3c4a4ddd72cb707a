package raftlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// TestScenarios runs the scripts in testdata. To accept new output:
//
//	go test ./raftlog -run TestScenarios -rewrite
//
// Commands:
//
//	open [member=N] [cluster=N] [segment=BYTES]
//	append [term=T] [vote=V] [commit=C] [entries=FROM-TO@TERM] [bytes=N] [respond=N]   one Append
//	       [snapshot=INDEX@TERM] [install-fails]                                       and a Sync
//	adopt index=I term=T
//	compact durable=I keep=BYTES
//	trim applied=I keep=BYTES [hold=I]   prints where memory begins
//	state         what raft sees
//	files         the directory
//	inspect
//	close
//	crash         keep only what was synced
//	kill          keep everything, close nothing
//	flip file=N offset=O        flip a bit
//	zero file=N offset=O len=L
//	remove name=NAME
//	peek
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if strings.Contains(path, "fuzz") {
			return
		}
		const dir = "log"
		var (
			mem     = vfs.NewCrashableMem()
			l       *Log
			s       sink
			drawn   uint64
			segSize int
		)
		logCore, logs := observer.New(zap.InfoLevel)
		defer func() {
			if l != nil {
				_ = l.Close() // a scenario may end with a failed log
			}
		}()
		state := func() string {
			hs, cs, err := l.InitialState()
			if err != nil {
				return err.Error()
			}
			first, _ := l.FirstIndex()
			last, _ := l.LastIndex()
			baseTerm, _ := l.Term(first - 1)
			var b strings.Builder
			fmt.Fprintf(&b, "hard-state term=%d vote=%d commit=%d\n", hs.GetTerm(), hs.GetVote(), hs.GetCommit())
			fmt.Fprintf(&b, "base %d/%d", baseTerm, first-1)
			if len(cs.GetVoters()) > 0 {
				fmt.Fprintf(&b, " voters=%v", cs.GetVoters())
			}
			b.WriteString("\n")
			for i := first; i <= last; i++ { // runs of one term
				term, _ := l.Term(i)
				j := i
				for ; j < last; j++ {
					if n, _ := l.Term(j + 1); n != term {
						break
					}
				}
				fmt.Fprintf(&b, "entries %d-%d term=%d\n", i, j, term)
				i = j
			}
			return b.String()
		}
		edit := func(d *datadriven.TestData, fn func(b []byte)) string {
			var n uint64
			d.ScanArgs(t, "file", &n)
			b, err := readFile(mem, dir+"/"+segmentName(n), 1<<40)
			if err != nil {
				return err.Error()
			}
			fn(b)
			f, err := mem.Create(dir+"/"+segmentName(n), diskCategory)
			if err != nil {
				return err.Error()
			}
			if _, err := f.Write(b); err != nil {
				return err.Error()
			}
			return ""
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) (out string) {
			defer func() {
				for _, e := range logs.TakeAll() {
					out += fmt.Sprintf("log: %s %s %v\n", e.Level, e.Message, e.ContextMap())
				}
			}()
			has := func(key string, to ...any) bool {
				if !d.HasArg(key) {
					return false
				}
				d.ScanArgs(t, key, to...)
				return true
			}
			switch d.Cmd {
			case "open":
				s = sink{}
				o := testOptions(mem, &s)
				o.random = func() uint64 { drawn++; return 0x9e3779b97f4a7c15 * drawn }
				o.Logger = zap.New(logCore)
				if has("segment", &segSize) {
					o.SegmentBytes = int64(segSize)
				}
				has("member", &o.MemberID)
				has("cluster", &o.ClusterID)
				o.NoSync = d.HasArg("nosync")
				var err error
				if l, err = Open(dir, o); err != nil {
					l = nil
					return err.Error() + "\n"
				}
				return state()
			case "append":
				var a Append
				var h hard
				if has("term", &h.term) {
					has("vote", &h.vote)
					has("commit", &h.commit)
					a.HardState = hardState(h.term, h.vote, h.commit)
				}
				var str string
				if has("entries", &str) {
					var from, to, term uint64
					if _, err := fmt.Sscanf(str, "%d-%d@%d", &from, &to, &term); err != nil {
						d.Fatalf(t, "%v", err)
					}
					a.Entries = entries(from, to, term)
					var n int
					if has("bytes", &n) {
						for _, e := range a.Entries {
							e.Data = bytes.Repeat([]byte{byte(e.GetIndex())}, n)
						}
					}
				}
				if has("snapshot", &str) {
					var index, term uint64
					if _, err := fmt.Sscanf(str, "%d@%d", &index, &term); err != nil {
						d.Fatalf(t, "%v", err)
					}
					a.Snapshot = snapshot(index, term)
					a.Install = func() error {
						out += "install\n"
						if d.HasArg("install-fails") {
							return errors.New("no room")
						}
						return nil
					}
				}
				var n uint64
				if has("respond", &n) {
					a.Responses = response(n)
				}
				s = sink{}
				failed := ""
				func() {
					defer func() {
						if r := recover(); r != nil {
							failed = fmt.Sprintf("panic: %v\n", r)
						}
					}()
					l.Append(a)
				}()
				if failed != "" {
					return failed
				}
				if d.HasArg("lazy") {
					return ""
				}
				if err := l.Sync(context.Background()); err != nil {
					out += fmt.Sprintf("sync: %v\n", err)
				}
				return out + fmt.Sprintf("released %v\n", s.indexes())
			case "adopt":
				var index, term uint64
				d.ScanArgs(t, "index", &index)
				d.ScanArgs(t, "term", &term)
				replaced, err := l.Adopt(index, term, &raftpb.ConfState{Voters: []uint64{1, 2, 3}})
				if err != nil {
					return err.Error() + "\n"
				}
				return fmt.Sprintf("replaced=%v\n", replaced) + state()
			case "compact":
				var durable uint64
				var keep int64
				d.ScanArgs(t, "durable", &durable)
				d.ScanArgs(t, "keep", &keep)
				if err := l.Compact(durable, keep); err != nil {
					return err.Error() + "\n"
				}
				return state()
			case "trim":
				var applied, hold uint64
				var keep int64
				d.ScanArgs(t, "applied", &applied)
				d.ScanArgs(t, "keep", &keep)
				if d.MaybeScanArgs(t, "hold", &hold) {
					l.Hold(hold, 1<<30)
				}
				l.Trim(applied, keep)
				l.Hold(NoHold, 0)
				first, _ := l.FirstIndex()
				return fmt.Sprintf("first %d\n", first)
			case "state":
				return state()
			case "files":
				ls, err := mem.List(dir)
				if err != nil {
					return err.Error()
				}
				slices.Sort(ls)
				for _, name := range ls {
					out += name + "\n"
				}
				return out
			case "inspect":
				var b bytes.Buffer
				if err := Inspect(dir, mem, &b); err != nil {
					return err.Error() + "\n"
				}
				return b.String()
			case "peek":
				m, ok, err := Peek(dir, mem)
				return fmt.Sprintf("%+v %v %v\n", m, ok, err)
			case "close":
				err := l.Close()
				l = nil
				if err != nil {
					return err.Error() + "\n"
				}
				return ""
			case "crash", "kill":
				old := l
				cfg := vfs.CrashCloneCfg{}
				if d.Cmd == "kill" {
					cfg = keepAll()
				}
				mem = mem.CrashClone(cfg)
				l = nil
				if old != nil {
					_ = old.Close() // writes to the abandoned file system
				}
				return ""
			case "flip":
				var off int
				d.ScanArgs(t, "offset", &off)
				return edit(d, func(b []byte) { b[off] ^= 4 })
			case "zero":
				var off, n int
				d.ScanArgs(t, "offset", &off)
				d.ScanArgs(t, "len", &n)
				return edit(d, func(b []byte) { clear(b[off : off+n]) })
			case "remove":
				var name string
				d.ScanArgs(t, "name", &name)
				if err := mem.Remove(dir + "/" + name); err != nil {
					return err.Error()
				}
				return ""
			}
			d.Fatalf(t, "unknown command %s", d.Cmd)
			return ""
		})
	})
}
