package ctl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/connect"
)

// TestPrint shows how each kind of response looks in each format: `print <response> [hex]
// [value-only]`.
func TestPrint(t *testing.T) {
	datadriven.RunTest(t, "testdata/print", func(t *testing.T, d *datadriven.TestData) string {
		name := d.CmdArgs[0].Key
		var all strings.Builder
		for _, format := range []string{"simple", "fields", "table", "json", "protobuf"} {
			var stdout, stderr bytes.Buffer
			out := &output{out: &stdout, err: &stderr, format: format, hex: d.HasArg("hex"), valueOnly: d.HasArg("value-only")}
			r, ok := samples(out)[name]
			if !ok {
				d.Fatalf(t, "no sample %q", name)
			}
			err := out.show(r)
			fmt.Fprintf(&all, "-- %s\n", format)
			if format == "protobuf" && err == nil {
				fmt.Fprintln(&all, hex.EncodeToString(stdout.Bytes()))
			} else {
				all.Write(stdout.Bytes())
			}
			if stderr.Len() > 0 {
				fmt.Fprintf(&all, "on stderr: %s", stderr.Bytes())
			}
			if err != nil {
				// Only the refusals that name no address are stable.
				text, _, _ := strings.Cut(err.Error(), " (&")
				fmt.Fprintf(&all, "exit code %d: %s\n", ExitCode(err), text)
			}
		}
		// datadriven ends its expectation at an empty line.
		return strings.ReplaceAll(all.String(), "\n\n", "\n(empty line)\n")
	})
}

func samples(out *output) map[string]reply {
	header := &pb.ResponseHeader{ClusterId: 0xc1, MemberId: 0xabcdef0123456789, Revision: 7, RaftTerm: 3}
	noRevision := &pb.ResponseHeader{ClusterId: 0xc1, MemberId: 0xabcdef0123456789, RaftTerm: 3}
	kv := func(key, value string) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: 2, ModRevision: 5, Version: 3, Lease: 0x1f}
	}
	members := []*pb.Member{
		{ID: 0x1a, Name: "m1", PeerURLs: []string{"http://10.0.0.1:2380", "http://10.0.1.1:2380"}, ClientURLs: []string{"http://10.0.0.1:2379"}},
		{ID: 0x2b, PeerURLs: []string{"http://10.0.0.2:2380"}, IsLearner: true},
	}
	get := &pb.RangeResponse{Header: header, Kvs: []*mvccpb.KeyValue{kv("k1", "v1"), kv("ké\n", "v\t2")}, Count: 3, More: true}
	put := &pb.PutResponse{Header: header, PrevKv: kv("k1", "old")}
	del := &pb.DeleteRangeResponse{Header: header, Deleted: 1, PrevKvs: []*mvccpb.KeyValue{kv("k1", "old")}}
	noHeader := func(m proto.Message) proto.Message { return proto.Clone(m) }
	innerGet := noHeader(get).(*pb.RangeResponse)
	innerPut := noHeader(put).(*pb.PutResponse)
	txn := &pb.TxnResponse{Header: header, Succeeded: true, Responses: []*pb.ResponseOp{
		{Response: &pb.ResponseOp_ResponseRange{ResponseRange: innerGet}},
		{Response: &pb.ResponseOp_ResponsePut{ResponsePut: innerPut}},
		{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: del}},
		{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: &pb.TxnResponse{Responses: []*pb.ResponseOp{
			{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}},
		}}}},
	}}
	put1 := mvccpb.Event_PUT
	status := func(size, inUse int64) []endpointStatus {
		return []endpointStatus{{Endpoint: "10.0.0.1:2379", Status: (*clientv3.StatusResponse)(&pb.StatusResponse{
			Header: noRevision, Version: "3.7.3", StorageVersion: "3.7.0", DbSize: size, DbSizeInUse: inUse, DbSizeQuota: 2147483648,
			Leader: 0xabcdef0123456789, RaftTerm: 3, RaftIndex: 12, RaftAppliedIndex: 11, Errors: []string{"etcdserver: no leader", "NOSPACE"},
			DowngradeInfo: &pb.DowngradeInfo{},
		})}}
	}
	change := func(raw any) reply { return out.memberChanged(0x2b, "updated in", raw, noRevision, members) }
	wide := slices.Concat(status(20480, 16384), status(20480, 16384), status(0, 0), status(0, 0))
	changes, slow, p99 := 4, 1, 0.0021
	wide[0].Wide = &wideStatus{LeaderChanges: &changes, Disk: "slow", DiskState: &slow, FsyncP99: &p99}
	wide[1].Wide = &wideStatus{LeaderChanges: &changes, FsyncP99: &p99} // an etcd
	wide[2].Wide = &wideStatus{Error: "refused"}
	return map[string]reply{
		"get":       rangeReply(get),
		"get-none":  rangeReply(&pb.RangeResponse{Header: header}),
		"put":       putReply(put),
		"put-plain": putReply(&pb.PutResponse{Header: header}),
		"del":       deleteReply(del),
		"txn":       txnReply(txn),
		"txn-fail":  txnReply(&pb.TxnResponse{Header: header}),
		"watch": watchReply(&clientv3.WatchResponse{Header: header, Events: []*clientv3.Event{
			(*clientv3.Event)(&mvccpb.Event{Type: put1, Kv: kv("k1", "v1"), PrevKv: kv("k1", "old")}),
			(*clientv3.Event)(&mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("k1"), ModRevision: 6}}),
		}}),
		"watch-progress": watchReply(&clientv3.WatchResponse{Header: header}),
		"watch-canceled": watchReply(&clientv3.WatchResponse{Header: header, Canceled: true, CompactRevision: 9}),

		"grant":       grantReply(&clientv3.LeaseGrantResponse{ResponseHeader: header, ID: 0x694d77aa, TTL: 60}),
		"keep-alive":  keepAliveReply(&clientv3.LeaseKeepAliveResponse{ResponseHeader: header, ID: 0x694d77aa, TTL: 60}),
		"revoke":      revokeReply(0x694d77aa, (*clientv3.LeaseRevokeResponse)(&pb.LeaseRevokeResponse{Header: header})),
		"ttl":         timeToLiveReply(&clientv3.LeaseTimeToLiveResponse{ResponseHeader: header, ID: 0x1f, TTL: 41, GrantedTTL: 60, Keys: [][]byte{[]byte("a"), []byte("b")}}, true),
		"ttl-expired": timeToLiveReply(&clientv3.LeaseTimeToLiveResponse{ResponseHeader: header, ID: 0x1f, TTL: -1}, false),
		"leases":      leasesReply(&clientv3.LeaseLeasesResponse{ResponseHeader: header, Leases: []clientv3.LeaseStatus{{ID: 0x1f}, {ID: 0x2f}}}),

		"member-add":    out.memberAdd("m2", "http://10.0.0.2:2380", &pb.MemberAddResponse{Header: noRevision, Member: members[1], Members: members}),
		"member-update": change(&pb.MemberUpdateResponse{Header: noRevision, Members: members}),
		"member-list":   out.memberList(&pb.MemberListResponse{Header: noRevision, Members: members}),
		"health": healthReply([]endpointHealth{
			{Endpoint: "10.0.0.1:2379", Health: true, Took: "1.5ms"},
			{Endpoint: "10.0.0.2:2379", Took: "5s", Error: "context deadline exceeded"},
		}),
		"status":        statusReply(status(20480, 16384), false),
		"status-nosize": statusReply(status(0, 0), false),
		"status-none":   statusReply(nil, false),
		"status-wide":   statusReply(wide, true),
		"hashkv":        hashReply([]endpointHash{{Endpoint: "10.0.0.1:2379", HashKV: (*clientv3.HashKVResponse)(&pb.HashKVResponse{Header: header, Hash: 4000000000, HashRevision: 7, CompactRevision: 2})}}),
		"alarms":        alarmReply(&pb.AlarmResponse{Header: header, Alarms: []*pb.AlarmMember{{MemberID: 0x1a, Alarm: pb.AlarmType_NOSPACE}, {MemberID: 0x2b, Alarm: pb.AlarmType_CORRUPT}}}),
		"move-leader":   moveLeaderReply(0x1a, 0x2b, &pb.MoveLeaderResponse{Header: header}),
	}
}

// TestCommandLine runs what needs no server: wrong arguments, text that is not understood, servers
// that are not there. One word a line after `run`; an optional part behind "<<<" is standard input.
func TestCommandLine(t *testing.T) {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "ETCDCTL_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	datadriven.RunTest(t, "testdata/command_line", func(t *testing.T, d *datadriven.TestData) string {
		name := "etcdctl"
		d.MaybeScanArgs(t, "name", &name)
		name = strings.ReplaceAll(name, "_", " ")
		for _, arg := range d.CmdArgs {
			if strings.HasPrefix(arg.Key, "ETCDCTL_") {
				os.Setenv(arg.Key, arg.Vals[0])
				defer os.Unsetenv(arg.Key)
			}
		}
		line, stdin, _ := strings.Cut(d.Input, " <<< ")
		args, err := splitWords(line)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		var stdout, stderr bytes.Buffer
		code := Main(name, args, strings.NewReader(strings.ReplaceAll(stdin, `\n`, "\n")), &stdout, &stderr)
		errText := stderr.String()
		if usage := strings.Index(errText, "Usage:"); usage >= 0 {
			errText = errText[:usage] + "(usage)\n"
		}
		text := stdout.String() + "-- stderr\n" + errText + fmt.Sprintf("-- exit code %d\n", code)
		return strings.ReplaceAll(text, "\n\n", "\n(empty line)\n")
	})
}

func TestUnabbreviate(t *testing.T) {
	root := Command("etcdctl", nil, nil, nil)
	root.InitDefaultHelpCmd() // as Main does
	for _, test := range []struct{ in, want string }{
		{"mem li", "member list"},
		{"m", "m"},                         // member and move-leader
		{"member re 1", "member remove 1"}, // replace is not etcdctl's
		{"member rep 1", "member replace 1"},
		{"member rem 1", "member remove 1"},
		{"r li", "role list"},
		{"t", "txn"},
		{"h mem li", "help member list"},
		{"re k", "restore-key k"},
		{"d", "d"},                  // defrag, del, downgrade
		{"mem x li", "member x li"}, // no such subcommand: left to be refused
		{"-w json mem li", "-w json member list"},
		{"--endpoints a,b --hex end st", "--endpoints a,b --hex endpoint status"},
		{"--endpoints=a endp --cluster st", "--endpoints=a endpoint --cluster status"},
		{"-wjson lea l", "-wjson lease list"},
		{"--consistency s get a", "--consistency s get a"}, // of get, which comes later; not snapshot
		{"--consistency=s ge a", "--consistency=s get a"},
		{"get pu", "get pu"}, // get has no subcommands: pu is a key
		{"-- mem li", "-- mem li"},
		{"help mem li", "help member list"},
		{"", ""},
	} {
		if got := strings.Join(connect.Unabbreviate(root, strings.Fields(test.in)), " "); got != test.want {
			t.Errorf("%q: got %q, want %q", test.in, got, test.want)
		}
	}
}

func TestTrailingDigest(t *testing.T) {
	data := bytes.Repeat([]byte("snapshot"), 200)
	sum := sha256.Sum256(data)
	stream := slices.Concat(data, sum[:])
	for _, chunk := range []int{1, 31, 32, 33, 500, len(stream)} {
		d := newTrailingDigest()
		for part := range slices.Chunk(stream, chunk) {
			d.Write(part)
		}
		if err := d.verify(); err != nil {
			t.Errorf("in chunks of %d: %v", chunk, err)
		}
	}
	stream[3] ^= 1
	d := newTrailingDigest()
	d.Write(stream)
	if d.verify() == nil {
		t.Error("a flipped bit went unnoticed")
	}
}

// FuzzTxnText feeds the parsers of txn and interactive watch what people and scripts might type.
func FuzzTxnText(f *testing.F) {
	for _, s := range []string{`mod("k") > "5"`, `put a "b c" --lease=1`, `get '' --prefix`, `lease("k") = "1f"`, `val("`, `"\x`, `watch a -- b`, "put --\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if strings.ContainsAny(line, "\n") {
			t.Skip()
		}
		_, _ = parseCompare(line)
		if words, err := splitWords(line); err == nil {
			_, _ = parseWatchLine(words)
			if len(words) > 0 && words[0] != "" && strings.HasPrefix("del", words[0]) {
				return // a range would wait its two seconds
			}
		}
		_, _ = (&ctl{err: &bytes.Buffer{}}).parseRequest(t.Context(), line)
	})
}

// programVariable makes this test's binary the program itself; see TestMain.
const programVariable = "BELAY_CTL_TEST_ARGUMENTS"

func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv(programVariable); ok {
		os.Exit(Main("etcdctl", strings.Fields(args), os.Stdin, os.Stdout, os.Stderr))
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("12") // they wait for time-outs most of the time; it is a number
	}
	os.Exit(m.Run())
}

// TestInterruptedBeforeAnyServerAnswers: Ctrl-C ends a command that waits for a
// server that is not there, by the signal, as it ends etcdctl.
func TestInterruptedBeforeAnyServerAnswers(t *testing.T) {
	asked := make(chan struct{})
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	go func() {
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			asked <- struct{}{}
		}
	}()
	for _, command := range []string{"lock l", "elect e me", "elect -l e"} {
		t.Run(command, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), programVariable+"=--endpoints="+silent.Addr().String()+" "+command)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-asked
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			if ctx.Err() != nil {
				t.Fatal("the command went on after SIGINT")
			}
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
				t.Errorf("ended with %v, want the signal's end", err)
			}
		})
	}
}
