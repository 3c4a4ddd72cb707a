package node

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/state"
)

// Data directories that earlier versions wrote are in testdata/datadirs, packed, each beside what
// is in it in words. Every version opens them. To add one of a program that writes another format
// than any before:
//
//	go build -o belay-NAME ./cmd/belay
//	go test ./node -run TestWriteDataDirectory -datadir.program $PWD/belay-NAME -datadir.name NAME
//	go test ./node -run TestOldDataDirectories -datadir.rewrite     and look at what it says
var (
	datadirProgram = flag.String("datadir.program", "", "write a data directory with this belay")
	datadirName    = flag.String("datadir.name", "", "its name in testdata/datadirs")
	datadirRewrite = flag.Bool("datadir.rewrite", false, "write down what the data directories hold, instead of comparing")
)

const datadirs = "testdata/datadirs"

// TestOldDataDirectories starts a member on each and compares what it has.
func TestOldDataDirectories(t *testing.T) {
	packed, err := filepath.Glob(filepath.Join(datadirs, "*.tar.gz"))
	if err != nil || len(packed) < 2 {
		t.Fatalf("%d data directories: %v", len(packed), err)
	}
	for _, path := range packed {
		name := strings.TrimSuffix(filepath.Base(path), ".tar.gz")
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := unpack(path, dir); err != nil {
				t.Fatal(err)
			}
			n := startOn(t, dir)
			got, want := contents(t, n), filepath.Join(datadirs, name+".txt")
			n.Stop()
			// Once more, from what this version has made of it.
			n = startOn(t, dir)
			again := contents(t, n)
			n.Stop()
			if again != got {
				t.Errorf("after another start it holds\n%swhere the first found\n%s", again, got)
			}
			if *datadirRewrite {
				if err := os.WriteFile(want, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			text, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(text) {
				t.Errorf("it holds\n%swant\n%s", got, text)
			}
		})
	}
}

func startOn(t *testing.T, dir string) *Node {
	t.Helper()
	client := []url.URL{{Scheme: "unix", Path: filepath.Join(t.TempDir(), "client")}}
	listen := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	advertise := []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	n, err := Start(context.Background(), Config{
		Settings: Settings{
			Cluster: Cluster{Name: "old", DataDir: dir, InitialCluster: "old=http://127.0.0.1:1", InitialClusterToken: "old"},
			Ports:   Ports{ListenClientURLs: client, AdvertiseClientURLs: client, ListenPeerURLs: listen, AdvertisePeerURLs: advertise},
			Raft:    Raft{UnsafeNoFsync: true},
		},
		TickInterval: 10 * time.Millisecond, ElectionTicks: 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Ready():
	case err := <-n.Failed():
		n.Stop()
		t.Fatal(err)
	case <-time.After(2 * time.Minute):
		n.Stop()
		t.Fatal("the member did not become ready")
	}
	return n
}

// contents is what a member holds, in words.
func contents(t *testing.T, n *Node) string {
	t.Helper()
	var b strings.Builder
	rev := n.kv.Revision()
	fmt.Fprintf(&b, "revision %d, compacted at %d, cluster version %v\n", rev, n.kv.CompactRevision(), n.state.ClusterVersion())
	for _, at := range []int64{rev, n.kv.CompactRevision()} {
		all, err := n.kv.Range(t.Context(), []byte{0}, []byte{0}, mvcc.RangeOptions{Rev: at})
		if err != nil {
			t.Fatal(err)
		}
		hash, _, _, err := n.kv.HashKV(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "at revision %d, hash %08x:\n", at, hash)
		for _, kv := range all.KVs {
			value := string(kv.Value)
			if len(value) > 40 {
				value = fmt.Sprintf("%s... of %d bytes", value[:20], len(value))
			}
			fmt.Fprintf(&b, "  %s = %s (created %d, modified %d, version %d, lease %x)\n",
				kv.Key, value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
		}
	}
	for _, l := range n.leases.List() {
		keys, err := n.leases.Keys(n.store, l.ID)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "lease %x of %d s: %s\n", int64(l.ID), l.TTL, keys)
	}
	if err := lease.Records(n.store, func(id lease.ID, ttl, _ int64) error {
		fmt.Fprintf(&b, "stored lease %x of %d s\n", int64(id), ttl)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, m := range n.state.Members() {
		fmt.Fprintf(&b, "member %x %q %v learner %t\n", m.ID, m.Name, m.PeerURLs, m.IsLearner)
	}
	stored, err := state.ReadStored(n.store)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range stored.Removed {
		fmt.Fprintf(&b, "removed member %x\n", id)
	}
	for _, a := range n.state.Alarms() {
		fmt.Fprintf(&b, "alarm %v of member %x\n", a.Alarm, a.MemberID)
	}
	p := n.state.Policy()
	fmt.Fprintf(&b, "users and roles: enabled %t, revision %d\n", p.Enabled(), p.Revision())
	for _, r := range []*pb.InternalRaftRequest{
		{AuthUserGet: &pb.AuthUserGetRequest{Name: "root"}}, {AuthUserGet: &pb.AuthUserGetRequest{Name: "alice"}},
		{AuthRoleGet: &pb.AuthRoleGetRequest{Role: "reader"}},
	} {
		out, err := p.Change(auth.Identity{User: "root", Revision: p.Revision()}, r)
		if err != nil {
			t.Fatal(err)
		}
		switch answer := out.Response.(type) {
		case *pb.AuthUserGetResponse:
			fmt.Fprintf(&b, "user %s has roles %v, the right password: %t\n", r.AuthUserGet.Name, answer.Roles, rightPassword(p, r.AuthUserGet.Name))
		case *pb.AuthRoleGetResponse:
			for _, perm := range answer.Perm {
				fmt.Fprintf(&b, "role reader may %v %q to %q\n", perm.PermType, perm.Key, perm.RangeEnd)
			}
		}
	}
	return b.String()
}

func rightPassword(p *auth.Policy, name string) bool {
	_, err := p.CheckPassword(name, "password of "+name)
	return err == nil
}

// TestWriteDataDirectory runs a program, writes into it what the others hold, stops it, and packs
// its data directory.
func TestWriteDataDirectory(t *testing.T) {
	if *datadirProgram == "" {
		t.Skip("it is asked for with -datadir.program")
	}
	dir, err := os.MkdirTemp("", "olddata")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	data, socket := filepath.Join(dir, "data"), "unix://"+filepath.Join(dir, "client")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	member := exec.Command(*datadirProgram, "server", "--name", "old", "--data-dir", data, "--listen-client-urls", socket, "--advertise-client-urls", socket,
		"--listen-peer-urls", "http://127.0.0.1:0", "--initial-advertise-peer-urls", "http://127.0.0.1:1", "--initial-cluster", "old=http://127.0.0.1:1")
	member.Stdout, member.Stderr = log, log
	if err := member.Start(); err != nil {
		t.Fatal(err)
	}
	err = fill(t.Context(), socket)
	stopped := errors.Join(member.Process.Signal(syscall.SIGTERM), waitFor(member))
	if err != nil || stopped != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("%v, %v\n%s", err, stopped, text)
	}
	if err := pack(data, filepath.Join(datadirs, *datadirName+".tar.gz")); err != nil {
		t.Fatal(err)
	}
}

// waitFor waits for the end of a program, which may be by the signal that was sent.
func waitFor(member *exec.Cmd) error {
	err := member.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGTERM {
			return nil
		}
	}
	return err
}

// fill writes something of everything that is stored. What it writes stays as it is: the texts
// beside the directories tell it.
func fill(ctx context.Context, endpoint string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: time.Minute, Context: ctx})
	if err != nil {
		return err
	}
	defer cli.Close()
	var failed error
	do := func(_ any, err error) { failed = errors.Join(failed, err) }
	for i := range 8 {
		do(cli.Put(ctx, fmt.Sprint("key", i), fmt.Sprint("value ", i)))
	}
	do(cli.Put(ctx, "large", strings.Repeat("0123456789abcdef", 4096)))
	do(cli.Put(ctx, "key1", "again"))
	do(cli.Delete(ctx, "key2"))
	do(cli.Delete(ctx, "key6", clientv3.WithRange("key8")))
	do(cli.Txn(ctx).If(clientv3.Compare(clientv3.Version("key3"), "=", 1)).
		Then(clientv3.OpPut("txn1", "a"), clientv3.OpPut("txn2", "b"), clientv3.OpDelete("key3")).Commit())
	do(cli.Compact(ctx, 11))
	do(cli.Put(ctx, "key2", "back"))
	do(pb.NewLeaseClient(cli.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 0x7777, TTL: 1 << 30}))
	do(pb.NewLeaseClient(cli.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 0x8888, TTL: 1 << 30}))
	do(cli.Put(ctx, "leased1", "l", clientv3.WithLease(0x7777)))
	do(cli.Put(ctx, "leased2", "l", clientv3.WithLease(0x7777)))
	do(cli.Put(ctx, "leased2", "l", clientv3.WithLease(0x8888)))
	for i, name := range []string{"http://127.0.0.1:2", "http://127.0.0.1:3"} {
		added, err := cli.MemberAddAsLearner(ctx, []string{name})
		do(added, err)
		if err == nil && i == 0 {
			do(cli.MemberRemove(ctx, added.Member.ID))
		}
	}
	do(cli.RoleAdd(ctx, "root"))
	do(cli.RoleAdd(ctx, "reader"))
	do(cli.RoleGrantPermission(ctx, "reader", "key", "kez", clientv3.PermissionType(clientv3.PermRead)))
	for _, name := range []string{"root", "alice"} {
		do(cli.UserAdd(ctx, name, "password of "+name))
	}
	do(cli.UserGrantRole(ctx, "root", "root"))
	do(cli.UserGrantRole(ctx, "alice", "reader"))
	do(pb.NewMaintenanceClient(cli.ActiveConnection()).Alarm(ctx,
		&pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: 1}))
	do(cli.AuthEnable(ctx))
	return failed
}

func pack(dir, to string) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	zip, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, zip.Close()) }()
	w := tar.NewWriter(zip)
	defer func() { err = errors.Join(err, w.Close()) }()
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		header := &tar.Header{Name: filepath.ToSlash(name), Mode: int64(info.Mode().Perm()), Typeflag: tar.TypeDir}
		if !entry.Type().IsRegular() {
			if !entry.IsDir() {
				return nil // a socket
			}
			return w.WriteHeader(header)
		}
		header.Typeflag, header.Size = tar.TypeReg, info.Size()
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		from, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, from)
		return errors.Join(err, from.Close())
	})
}

func unpack(from, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	r := tar.NewReader(zip)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, fs.FileMode(h.Mode))
		} else {
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, b, fs.FileMode(h.Mode))
			}
		}
		if err != nil {
			return err
		}
	}
}
