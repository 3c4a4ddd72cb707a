package ctl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/internal/interrupt"
)

// half is a server that answers reads and grants with empty answers and nothing else: commands get
// as far as their first write.
type half struct {
	address string
	server  *grpc.Server
	silent  chan struct{} // gets one for each call without an answer, if there is room
}

func newHalf(t *testing.T) *half {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &half{address: l.Addr().String(), silent: make(chan struct{}, 1)}
	answers := map[string]proto.Message{
		"/etcdserverpb.KV/Range":           &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 1}},
		"/etcdserverpb.Lease/LeaseGrant":   &pb.LeaseGrantResponse{Header: &pb.ResponseHeader{}, ID: 1, TTL: 10},
		"/etcdserverpb.Maintenance/Status": &pb.StatusResponse{Header: &pb.ResponseHeader{}},
		"/etcdserverpb.Cluster/MemberList": &pb.MemberListResponse{Header: &pb.ResponseHeader{}},
		"/etcdserverpb.Auth/Authenticate":  &pb.AuthenticateResponse{Header: &pb.ResponseHeader{}, Token: "t"},
		"/etcdserverpb.Maintenance/HashKV": &pb.HashKVResponse{Header: &pb.ResponseHeader{}},
		"/etcdserverpb.Lease/LeaseLeases":  &pb.LeaseLeasesResponse{Header: &pb.ResponseHeader{}},
	}
	h.server = grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		if answer := answers[method]; answer != nil {
			if err := stream.RecvMsg(new(pb.HashRequest)); err != nil { // a message without fields takes all as unknown ones
				return err
			}
			return stream.SendMsg(answer)
		}
		select {
		case h.silent <- struct{}{}:
		default:
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}))
	go func() { _ = h.server.Serve(l) }()
	t.Cleanup(h.server.Stop)
	return h
}

// leaves are all commands that can be run, as they are typed.
func leaves(t testing.TB) (commands []string) {
	var walk func(cmd *cobra.Command, path string)
	walk = func(cmd *cobra.Command, path string) {
		if cmd.Runnable() && !cmd.HasSubCommands() {
			commands = append(commands, strings.TrimSpace(path))
		}
		for _, sub := range cmd.Commands() {
			walk(sub, path+" "+sub.Name())
		}
	}
	root := Command("etcdctl", nil, io.Discard, io.Discard)
	root.InitDefaultHelpCmd()
	walk(root, "")
	if len(commands) < 50 || !slices.Contains(commands, "check perf") {
		t.Fatalf("not all commands: %q", commands)
	}
	return commands
}

// running is a command as a process of its own.
type running struct {
	*exec.Cmd
	out   bytes.Buffer
	ended chan error
	stdin io.Closer
}

func start(t *testing.T, line string) *running {
	t.Helper()
	r := &running{Cmd: exec.CommandContext(t.Context(), os.Args[0]), ended: make(chan error, 1)}
	r.Env = append(os.Environ(), programVariable+"="+line)
	r.Stdout, r.Stderr = &r.out, &r.out
	r.Dir = t.TempDir()
	in, err := r.StdinPipe() // never ends, as a terminal
	if err != nil {
		t.Fatal(err)
	}
	r.stdin = in
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { r.ended <- r.Wait(); close(gone) }()
	t.Cleanup(func() { _ = r.Process.Kill(); <-gone }) // it may write to its folder until then
	return r
}

// reached starts a command with as many arguments as it takes to come to a call without an answer;
// nil if it never does and ends by itself instead.
func reached(t *testing.T, h *half, command string) *running {
	t.Helper()
	for _, arguments := range []string{"", " 1", " 1 1", " 1 1 1", " 1 1 1 1", " validate 1", " enable 1.0"} {
		r := start(t, "--endpoints="+h.address+" --user=u:p --command-timeout=2s "+command+arguments)
		select {
		case <-h.silent:
			return r
		case <-r.ended:
		case <-time.After(10 * time.Second): // it waits for its standard input
			return r
		}
	}
	return nil
}

// TestFirstSignalEnds: each command ends at the first SIGINT or SIGTERM, while its server is
// silent, and leaves no part of a file.
func TestFirstSignalEnds(t *testing.T) {
	t.Parallel()
	for i, command := range leaves(t) {
		t.Run(strings.ReplaceAll(command, " ", "-"), func(t *testing.T) {
			t.Parallel()
			r := reached(t, newHalf(t), command)
			if r == nil {
				return // version and the like
			}
			sig := []os.Signal{syscall.SIGINT, syscall.SIGTERM}[i%2]
			if err := r.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
			select {
			case <-r.ended:
			case <-time.After(interrupt.Grace + 30*time.Second):
				t.Errorf("goes on after %v", sig)
			}
			if left, err := os.ReadDir(r.Dir); err != nil || len(left) > 0 {
				t.Errorf("leaves %v, %v", left, err)
			}
		})
	}
}

// waits are the commands that wait for a server to come back, as etcdctl's do, and so does what
// they are for.
var waits = []string{"watch", "lock", "elect", "make-mirror", "lease keep-alive"}

// TestServerGone: each other command ends by itself when its server goes while it waits for an
// answer.
func TestServerGone(t *testing.T) {
	t.Parallel()
	for _, command := range leaves(t) {
		if slices.Contains(waits, command) || strings.HasPrefix(command, "check ") { // checks: TestCheckServerGone
			continue
		}
		t.Run(strings.ReplaceAll(command, " ", "-"), func(t *testing.T) {
			t.Parallel()
			h := newHalf(t)
			r := reached(t, h, command)
			if r == nil {
				return
			}
			h.server.Stop()
			_ = r.stdin.Close()
			select {
			case <-r.ended:
			case <-time.After(2 * time.Minute): // --command-timeout is 2 s
				t.Errorf("goes on without a server: %s", &r.out)
			}
		})
	}
}

// TestCheckServerGone: the checks end, with shorter loads and less patience than theirs.
func TestCheckServerGone(t *testing.T) {
	t.Parallel()
	load := map[string]workload{"s": {clients: 3, rate: 100, duration: 100 * time.Millisecond, keys: 1000, patience: time.Second}}
	for _, kind := range []string{"perf", "datascale"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := newHalf(t)
			var mu sync.Mutex
			var out bytes.Buffer
			c := &ctl{name: "etcdctl", in: strings.NewReader(""), out: &lockedWriter{&mu, &out}, err: io.Discard}
			cmd := c.checkPerfCommand(load)
			if kind == "datascale" {
				cmd = c.checkDatascaleCommand(load)
			}
			root := &cobra.Command{Use: "etcdctl"}
			c.global.register(root)
			root.AddCommand(cmd)
			root.SetArgs([]string{"--endpoints=" + h.address, kind})
			ended := make(chan error, 1)
			go func() { ended <- root.ExecuteContext(context.Background()) }()
			if kind == "perf" { // datascale ends at once: there is no /metrics
				<-h.silent
				h.server.Stop()
			}
			select {
			case err := <-ended:
				if err == nil {
					t.Errorf("passed without a server")
				}
			case <-time.After(checkAfterwards + time.Minute):
				t.Error("goes on without a server")
			}
		})
	}
}

// TestWaitsAreToldOf: a command that waits for a server says so when none has answered for the time of
// a short command, and how an address should be written that cannot be one.
func TestWaitsAreToldOf(t *testing.T) {
	t.Parallel()
	h := newHalf(t)
	for args, want := range map[string]string{
		"--endpoints=noport watch k":                                     `the endpoint "noport" has no port: give it as noport:2379`,
		"--endpoints=" + h.address + " make-mirror 127.0.0.1:1":          "no server at 127.0.0.1:1: connection refused",
		"--endpoints=127.0.0.1:1 lease keep-alive 7":                     "no server at 127.0.0.1:1: connection refused",
		"--endpoints=127.0.0.1:1 lock l":                                 "no server at 127.0.0.1:1: connection refused",
		"--endpoints=127.0.0.1:1,127.0.0.1:2 elect --listen e":           "no server at 127.0.0.1:2: connection refused",
		"--endpoints=127.0.0.1:1 make-mirror noport":                     `the endpoint "noport" has no port`,
		"--endpoints=127.0.0.1:1 watch --prefix --command-timeout=1ms k": "until this command is ended",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			told := make(chan struct{})
			ended := make(chan int, 1)
			go func() {
				ended <- MainContext(ctx, "etcdctl", append(strings.Fields(args), "--command-timeout=10ms"), strings.NewReader(""), io.Discard, &seeker{want: want, found: told})
			}()
			select {
			case <-told:
			case <-time.After(time.Minute):
				t.Fatal("nothing is told")
			}
			cancel()
			<-ended
		})
	}
}

// A seeker closes found when want has been written, in whatever pieces.
type seeker struct {
	mu    sync.Mutex
	text  strings.Builder
	want  string
	found chan struct{}
}

func (s *seeker) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := strings.Contains(s.text.String(), s.want)
	s.text.Write(b)
	if !before && strings.Contains(s.text.String(), s.want) {
		close(s.found)
	}
	return len(b), nil
}
