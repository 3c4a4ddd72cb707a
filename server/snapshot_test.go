package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/state"
)

// A real etcd restored from a member's snapshot must have the same history: equal HashKV, revision,
// leases. Needs BELAY_ETCD and BELAY_ETCDUTL, the paths of real binaries.
func TestEtcdContinuesFromSnapshot(t *testing.T) {
	etcd, etcdutl := os.Getenv("BELAY_ETCD"), os.Getenv("BELAY_ETCDUTL")
	if etcd == "" || etcdutl == "" {
		t.Skip("BELAY_ETCD and BELAY_ETCDUTL name no binaries")
	}
	for _, compactions := range []int{0, 2} {
		t.Run(fmt.Sprintf("compactions=%d", compactions), func(t *testing.T) {
			m := newMember(t)
			randomHistory(m, compactions)
			path := filepath.Join(t.TempDir(), "snap.db")
			saveSnapshot(t, m, path)
			want, err := m.maintenance.HashKV(t.Context(), &pb.HashKVRequest{})
			must(t, err)

			conn := startRestored(t, etcd, etcdutl, path)
			got, err := pb.NewMaintenanceClient(conn).HashKV(t.Context(), &pb.HashKVRequest{Revision: want.HashRevision})
			must(t, err)
			if got.Hash != want.Hash || got.CompactRevision != want.CompactRevision || got.Header.Revision != want.Header.Revision {
				t.Fatalf("etcd has %v, belay %v", got, want)
			}
			all := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
			ours, err := m.kv.Range(t.Context(), all)
			must(t, err)
			theirs, err := pb.NewKVClient(conn).Range(t.Context(), all)
			must(t, err)
			ours.Header, theirs.Header = nil, nil
			if a, b := ours.String(), theirs.String(); a != b {
				t.Fatalf("etcd has\n%s\nbelay\n%s", b, a)
			}
			ttl, err := pb.NewLeaseClient(conn).LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true})
			must(t, err)
			if ttl.GrantedTTL != 1000 || len(ttl.Keys) == 0 {
				t.Fatalf("lease: %v", ttl)
			}
		})
	}
}

// randomHistory writes, deletes, nests and compacts.
func randomHistory(m *member, compactions int) {
	seed := uint64(time.Now().UnixNano())
	m.t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	ctx := m.t.Context()
	_, err := m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 1000})
	must(m.t, err)
	key := func() string { return fmt.Sprintf("k%02d", rnd.IntN(40)) }
	const steps = 600
	for i := range steps {
		switch x := rnd.IntN(10); {
		case x < 6:
			_, err = m.kv.Put(ctx, &pb.PutRequest{Key: []byte(key()), Value: make([]byte, rnd.IntN(300)), Lease: int64(7 * rnd.IntN(2))})
		case x < 8:
			_, err = m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(key()), RangeEnd: []byte(key())})
		default:
			_, err = m.kv.Txn(ctx, &pb.TxnRequest{Success: ops(opPut("k90"), opPut("k91"), opDelete(key(), ""))})
		}
		must(m.t, err)
		if compactions > 0 && i%(steps/compactions) == steps/compactions/2 {
			rev := m.cfg.KV.Revision() - int64(rnd.IntN(20))
			_, err = m.kv.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: rnd.IntN(2) == 0})
			must(m.t, err)
		}
	}
}

func saveSnapshot(t *testing.T, m *member, path string) {
	t.Helper()
	stream, err := m.maintenance.Snapshot(t.Context(), &pb.SnapshotRequest{})
	must(t, err)
	var all []byte
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			break
		}
		must(t, err)
		all = append(all, resp.Blob...)
	}
	must(t, os.WriteFile(path, all, 0o600))
}

// startRestored restores a snapshot with etcdutl, starts etcd from it on free
// loopback ports, and returns a connection once it serves.
func startRestored(t *testing.T, etcd, etcdutl, snap string) *grpc.ClientConn {
	t.Helper()
	addr := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		return l.Addr().String()
	}
	clientAddr, peer := addr(), "http://"+addr()
	dir := filepath.Join(t.TempDir(), "restored")
	out, err := exec.Command(etcdutl, "snapshot", "restore", snap, "--data-dir", dir, "--name", "r",
		"--initial-cluster", "r="+peer, "--initial-advertise-peer-urls", peer).CombinedOutput()
	if err != nil {
		t.Fatalf("restore: %v\n%s", err, out)
	}
	client := "http://" + clientAddr
	var logs bytes.Buffer
	cmd := exec.Command(etcd, "--name", "r", "--data-dir", dir, "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer)
	cmd.Stdout, cmd.Stderr = &logs, &logs
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("etcd:\n%s", logs.String())
		}
	})
	conn, err := grpc.NewClient(clientAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("k")}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("the restored etcd does not serve: %v", err)
	}
	return conn
}

// Clients that take a snapshot and read nothing hold two files for a while and no
// more; who reads gets his turn after them, and beyond the queue is refused.
func TestUnreadSnapshots(t *testing.T) {
	m := newMember(t)
	value := bytes.Repeat([]byte("v"), 1<<20)
	for i := range 4 { // more than flow control lets out unread
		_, err := m.kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Append(nil, i), Value: value})
		must(t, err)
	}
	m.Server.maintenance.snapshotStall = 2 * time.Second
	open := func() pb.Maintenance_SnapshotClient {
		t.Helper()
		stream, err := m.maintenance.Snapshot(t.Context(), &pb.SnapshotRequest{})
		must(t, err)
		return stream
	}
	var unread []pb.Maintenance_SnapshotClient
	for range maxSnapshots {
		unread = append(unread, open())
	}
	path := filepath.Join(t.TempDir(), "snap.db")
	saveSnapshot(t, m, path) // waits for its turn
	if info, err := os.Stat(path); err != nil || info.Size() < 4<<20 {
		t.Errorf("the snapshot that was read: %v, %v", info, err)
	}
	for _, stream := range unread {
		for {
			_, err := stream.Recv()
			if err == nil {
				continue
			}
			if status.Code(err) != codes.Aborted && err != io.EOF { // it may have been read in time, after all
				t.Errorf("an unread stream ended with %v", err)
			}
			break
		}
	}
	m.Server.maintenance.snapshotsWaiting.Add(maxSnapshots + maxSnapshotsWaiting)
	if _, err := open().Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("beyond the queue: %v", err)
	}
	m.Server.maintenance.snapshotsWaiting.Add(-maxSnapshots - maxSnapshotsWaiting)
	saveSnapshot(t, m, path)
}

// TestSnapshotForNobody: a client that leaves while its snapshot is made is not worth a warning; what
// else keeps one from being made is.
func TestSnapshotForNobody(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	m := newMember(t, func(c *Config, _ *state.Config) { c.Logger = zap.New(core) })
	randomHistory(m, 0)
	gone, leave := context.WithCancel(t.Context())
	leave()
	for range 20 { // it may leave while it waits for its turn, too
		if err := m.Server.maintenance.snapshot(gone, nil, nil); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	const failed = "failed to make a database snapshot"
	if lines := logs.FilterMessage(failed).All(); len(lines) > 0 {
		t.Errorf("warned of a client that left: %v", lines)
	}
	m.Server.maintenance.dataDir = filepath.Join(t.TempDir(), "none")
	if err := m.Server.maintenance.snapshot(t.Context(), nil, nil); err == nil || logs.FilterMessage(failed).Len() != 1 {
		t.Errorf("%v, %v", err, logs.All())
	}
}
