package state

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
)

// Scenarios are text: `apply` is one batch, one request in prototext a line; `change` one member
// change; the rest shows the state.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		cfg := Config{}
		if strings.HasSuffix(path, "quota") {
			cfg.QuotaBytes = 1 // everything is over it
		}
		r := newRig(t, cfg)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out := r.run(t, d)
			r.checkAttachments()
			return out
		})
	})
}

func (r *rig) run(t *testing.T, d *datadriven.TestData) string {
	var out strings.Builder
	switch d.Cmd {
	case "apply":
		var requests []*pb.InternalRaftRequest
		for line := range strings.Lines(d.Input) {
			req := new(pb.InternalRaftRequest)
			if strings.TrimSpace(line) == "noop" {
				req = nil
			} else if err := prototext.Unmarshal([]byte(line), req); err != nil {
				d.Fatalf(t, "%s: %v", line, err)
			}
			requests = append(requests, req)
		}
		entries := r.next(requests...)
		if d.HasArg("unawaited") {
			for i := range entries {
				entries[i].Unawaited = true
			}
		}
		r.events = nil
		for _, res := range r.Apply(entries) {
			fmt.Fprintln(&out, resultText(res))
		}
		for _, e := range r.events {
			fmt.Fprintln(&out, "event", e)
		}
	case "change":
		c := &command.Change{ID: 1}
		var kind string
		var id int64
		d.ScanArgs(t, "type", &kind)
		d.ScanArgs(t, "id", &id)
		c.MemberID = uint64(id)
		c.Member.ID = c.MemberID
		if d.HasArg("urls") {
			for _, arg := range d.CmdArgs {
				if arg.Key == "urls" {
					c.Member.PeerURLs = arg.Vals
				}
			}
		}
		if d.HasArg("max") {
			d.ScanArgs(t, "max", &c.MaxLearners)
		}
		switch kind {
		case "add":
			c.Type = raftpb.ConfChangeAddNode
		case "learner":
			c.Type, c.Member.IsLearner = raftpb.ConfChangeAddLearnerNode, true
		case "promote":
			c.Type, c.IsPromote = raftpb.ConfChangeAddNode, true
		case "remove":
			c.Type = raftpb.ConfChangeRemoveNode
		case "update":
			c.Type = raftpb.ConfChangeUpdateNode
		case "odd":
			c.Type = 77
		case "mismatch":
			c.Member.ID++
		}
		fmt.Fprintln(&out, resultText(r.change(c)))
	case "cluster":
		fmt.Fprintln(&out, membersText(r.Members()))
		for id := range uint64(20) {
			if r.IsRemoved(id) {
				fmt.Fprintf(&out, "removed: %x\n", id)
			}
		}
		fmt.Fprintln(&out, "version:", r.ClusterVersion(), "downgrade:", r.DowngradeInfo())
		for _, a := range r.Alarms() {
			fmt.Fprintln(&out, "alarm:", text(a))
		}
		index, term := r.Applied()
		fmt.Fprintln(&out, "applied:", index, term)
	case "lease":
		var id int64
		d.ScanArgs(t, "id", &id)
		info, ok := r.leases.Lookup(lease.ID(id))
		keys, err := r.leases.Keys(r.st, lease.ID(id))
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		fmt.Fprintln(&out, ok, "ttl", info.TTL, fmt.Sprintf("%q", keys))
	case "hashkv":
		fmt.Fprintln(&out, r.hashKV(0))
	case "reopen":
		r.reopen()
		return "ok"
	default:
		d.Fatalf(t, "unknown command")
	}
	return out.String()
}
