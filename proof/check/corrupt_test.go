package check

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/store"
)

// corrupted is a cluster of three with some keys, one member of which has,
// behind everybody's back, another value for one of them.
type corrupted struct {
	t      *testing.T
	c      *cluster.Cluster
	bad    *cluster.Member
	badID  uint64
	client *clientv3.Client
}

const (
	corruptKeys    = 200
	corruptRevKept = 50 // every key has a version after it
)

// newCorrupted starts a cluster, writes, and alters what the chosen member has stored. The member
// is stopped, or its file could not be opened; it is started again.
func newCorrupted(ctx context.Context, t *testing.T, badLeads bool, args ...string) *corrupted {
	t.Helper()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Binary: binaryOf(t, cluster.Belay), Size: 3, Dir: t.TempDir(), Args: args})
	k := &corrupted{t: t, c: c, client: newClient(t, c.Endpoints())}
	for i := range corruptKeys {
		if _, err := k.client.Put(ctx, fmt.Sprintf("key%03d", i), strings.Repeat("value", 20)); err != nil {
			t.Fatal(err)
		}
	}
	k.bad = c.Members[1]
	st, err := k.client.Status(ctx, k.bad.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	k.badID = st.Header.MemberId
	if err := k.bad.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	alterValue(t, k.bad, "key007")
	if err := k.bad.Start(); err != nil {
		t.Fatal(err)
	}
	if err := k.bad.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	k.lead(ctx, badLeads)
	return k
}

// alterValue changes one byte of the newest value of a key in the store of a
// member that does not run.
func alterValue(t *testing.T, m *cluster.Member, key string) {
	t.Helper()
	st, err := store.Open(filepath.Join(m.DataDir, "member", "store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	it, err := st.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	prefix := store.AppendUserKeyPrefix(nil, []byte(key))
	if !it.SeekGE(prefix) {
		t.Fatalf("%s has no %q", m.Name, key)
	}
	stored, value := slices.Clone(it.Key()), slices.Clone(it.Value())
	if _, found, _, _, ok := store.ParseUserKey(stored); !ok || string(found) != key {
		t.Fatalf("%s: %q in place of %q", m.Name, stored, key)
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	value[len(value)-1] ^= 1
	b := st.NewLocalBatch()
	if err := b.Set(stored, value); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := st.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
}

// lead makes the bad member the leader, or another.
func (k *corrupted) lead(ctx context.Context, bad bool) {
	k.t.Helper()
	if err := eventually(ctx, func() error {
		st, err := k.client.Status(ctx, k.c.Members[0].Endpoint())
		if err != nil {
			return err
		}
		if (st.Leader == k.badID) == bad {
			return nil
		}
		target := k.badID
		if !bad {
			target = st.Header.MemberId
		}
		for _, m := range k.c.Members {
			one := newClient(k.t, []string{m.Endpoint()})
			if _, err := one.MoveLeader(ctx, target); err == nil {
				return nil
			}
		}
		return fmt.Errorf("member %x does not take over", target)
	}); err != nil {
		k.t.Fatalf("%v\n%s", err, k.c.Tails(5))
	}
}

// alarmed waits for the alarm, for the bad member alone, and for what it does.
func (k *corrupted) alarmed(ctx context.Context) {
	t := k.t
	t.Helper()
	if err := eventually(ctx, func() error {
		list, err := k.client.AlarmList(ctx)
		if err != nil {
			return err
		}
		if len(list.Alarms) != 1 || list.Alarms[0].Alarm != pb.AlarmType_CORRUPT || list.Alarms[0].MemberID != k.badID {
			return fmt.Errorf("alarms %v, want CORRUPT of %x", list.Alarms, k.badID)
		}
		return nil
	}); err != nil {
		t.Fatalf("%v\n%s", err, k.c.Tails(10))
	}
	for _, m := range k.c.Members {
		one := newClient(t, []string{m.Endpoint()})
		if _, err := one.Put(ctx, "key", "value"); status.Code(err) != codes.DataLoss && !strings.Contains(fmt.Sprint(err), "etcdserver: corrupt cluster") {
			t.Errorf("%s: put: %v", m.Name, err)
		}
		body, err := getBody(ctx, m.ClientURL+"/health")
		if err != nil || !strings.Contains(string(body), `"health":"false"`) || !strings.Contains(string(body), "CORRUPT") {
			t.Errorf("%s: /health: %s %v", m.Name, body, err)
		}
		body, err = getBody(ctx, m.ClientURL+"/readyz/data_corruption")
		if err != nil || !strings.Contains(string(body), "alarm activated: CORRUPT") {
			t.Errorf("%s: /readyz/data_corruption: %s %v", m.Name, body, err)
		}
		scrape, err := getBody(ctx, m.ClientURL+"/metrics")
		want := fmt.Sprintf(`etcd_debugging_server_alarms{alarm_type="CORRUPT",server_id="%x"} 1`, k.badID)
		if err != nil || !strings.Contains(string(scrape), want) {
			t.Errorf("%s: no %s, %v", m.Name, want, err)
		}
	}
}

func (k *corrupted) says(text string, members ...*cluster.Member) bool {
	k.t.Helper()
	for _, m := range members {
		data, err := os.ReadFile(m.LogPath)
		if err != nil {
			k.t.Fatal(err)
		}
		if strings.Contains(string(data), `"`+text+`"`) {
			return true
		}
	}
	return false
}

func TestCorruptPeriodic(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	for name, leads := range map[string]bool{"follower": false, "leader": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			k := newCorrupted(ctx, t, leads, "--corrupt-check-time=1s")
			k.alarmed(ctx)
			if !k.says("same compact revision then hashes must match", k.c.Members...) {
				t.Error("no member says what it found")
			}
		})
	}
}

func TestCorruptCompaction(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	for name, leads := range map[string]bool{"follower": false, "leader": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			k := newCorrupted(ctx, t, leads, "--compact-hash-check-time=500ms")
			if _, err := k.client.Compact(ctx, corruptKeys/2, clientv3.WithCompactPhysical()); err != nil {
				t.Fatal(err)
			}
			k.alarmed(ctx)
			if !k.says("Detected compaction hash mismatch", k.c.Members...) {
				t.Error("no member says what it found")
			}
		})
	}
}

// TestCorruptCompactionOff: with the feature gate off, nobody compares the hashes of compactions.
func TestCorruptCompactionOff(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	k := newCorrupted(ctx, t, false, "--compact-hash-check-time=50ms", "--feature-gates=CompactHashCheck=false")
	if _, err := k.client.Compact(ctx, corruptKeys/2, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // twenty checks, were they on
	if alarms, err := k.client.AlarmList(ctx); err != nil || len(alarms.Alarms) != 0 {
		t.Errorf("%v, %v", alarms, err)
	}
	if k.says("Detected compaction hash mismatch", k.c.Members...) {
		t.Error("somebody compared")
	}
}

// initialGate turns the initial check on, if the flag is there yet.
func initialGate(t *testing.T) []string {
	help, err := exec.Command(binaryOf(t, cluster.Belay), "server", "--help").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(help), "\n  --feature-gates '") {
		return nil
	}
	return []string{"--feature-gates=InitialCorruptCheck=true"}
}

func TestCorruptInitial(t *testing.T) {
	onlyBelay(t)
	on := initialGate(t)
	if on == nil {
		t.Skip("needs --feature-gates")
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	k := newCorrupted(ctx, t, false)
	gate := func(args []string) []string { return append(args, on...) }

	// A healthy member starts, and says who differs.
	good := k.c.Members[2]
	if err := good.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	good.SetArgs(gate)
	if err := good.Start(); err != nil {
		t.Fatal(err)
	}
	if err := good.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if !k.says("found different hash values from remote peer", good) {
		t.Errorf("%s does not say that %s differs:\n%s", good.Name, k.bad.Name, good.LogTail(20))
	}

	// The bad one does not.
	if err := k.bad.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	k.bad.SetArgs(gate)
	from := logSize(k.bad)
	if err := k.bad.Start(); err != nil {
		t.Fatal(err)
	}
	exits(t, k.bad, from, "checkInitialHashKV failed", "found data inconsistency with peers")
}

// TestNeverCorrupt: a healthy cluster that compacts all the time, whose keys
// all vanish at times, and whose members are killed and started, never alarms.
func TestNeverCorrupt(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Binary: binaryOf(t, cluster.Belay), Size: 3, Dir: t.TempDir(), Args: append([]string{
		"--corrupt-check-time=50ms", "--compact-hash-check-time=50ms",
		"--compaction-batch-limit=20", "--compaction-sleep-interval=5ms",
	}, initialGate(t)...)})
	client := newClient(t, c.Endpoints())
	stop := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		var err error
		for n := 0; err == nil; n++ {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			call, cancel := context.WithTimeout(ctx, 5*time.Second)
			var rev int64
			if put, err := client.Put(call, fmt.Sprintf("k%d", n%37), fmt.Sprint(n)); err == nil {
				rev = put.Header.Revision
			}
			if n%50 == 0 {
				if del, err := client.Delete(call, "k", clientv3.WithPrefix()); err == nil {
					rev = del.Header.Revision // nothing is left, and a tombstone is the newest
				}
			}
			if n%10 == 0 && rev > 0 {
				_, _ = client.Compact(call, rev) // refused after a newer one
			}
			cancel()
		}
		ended <- err
	}()
	checks := map[string]float64{} // made, by kind and result
	count := func(m *cluster.Member) {
		scrape, err := getBody(ctx, m.ClientURL+"/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for _, series := range parseScrape(t, scrape)["belay_corruption_checks_total"].GetMetric() {
			labels := series.GetLabel()
			checks[labels[0].GetValue()+" "+labels[1].GetValue()] += series.GetCounter().GetValue()
		}
	}
	for round := range envInt(t, "BELAY_CORRUPT_ROUNDS", 6) {
		m := c.Members[round%3]
		count(m)
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := m.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	list, err := client.AlarmList(ctx)
	if err != nil || len(list.Alarms) > 0 {
		t.Errorf("alarms %v, %v\n%s", list, err, c.Tails(20))
	}
	// And it did compare. The last compaction has its hash on all members.
	put, err := client.Put(ctx, "k", "v")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(ctx, put.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if err := eventually(ctx, func() error {
		for _, m := range c.Members {
			count(m)
		}
		if checks["periodic equal"] == 0 || checks["compaction equal"] == 0 {
			return fmt.Errorf("checks made: %v", checks)
		}
		return nil
	}); err != nil {
		t.Errorf("%v\n%s", err, c.Tails(20))
	}
	for what, n := range checks {
		if strings.HasSuffix(what, "mismatch") {
			t.Errorf("%s: %v", what, n)
		}
	}
	t.Logf("%v", checks)
}

// TestCorruptAlarm: what a CORRUPT alarm, of a member or of nobody known,
// refuses and what it leaves, here and in etcd.
func TestCorruptAlarm(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	told := map[cluster.Kind][]string{}
	for _, kind := range []cluster.Kind{cluster.Etcd, cluster.Belay} {
		c := startCluster(t, cluster.Config{Kind: kind, Binary: binaryOf(t, kind), Size: 1, Dir: t.TempDir()})
		m := c.Members[0]
		conn, err := m.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		kv, lease, maint := pb.NewKVClient(conn), pb.NewLeaseClient(conn), pb.NewMaintenanceClient(conn)
		note := func(what string, err error) {
			told[kind] = append(told[kind], fmt.Sprintf("%s: %v %s", what, status.Code(err), status.Convert(err).Message()))
		}
		granted, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
		note("grant before", err)
		_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("1")})
		note("put before", err)
		for _, id := range []uint64{0, 7} {
			alarm := func(action pb.AlarmRequest_AlarmAction) {
				t.Helper()
				resp, err := maint.Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: id, Alarm: pb.AlarmType_CORRUPT})
				note(strings.ReplaceAll(fmt.Sprintf("%v for %d: %v", action, id, resp.GetAlarms()), "  ", " "), err)
			}
			alarm(pb.AlarmRequest_ACTIVATE)
			alarm(pb.AlarmRequest_GET)
			put := []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a")}}}}
			get := []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a")}}}}
			_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("a")})
			note("put", err)
			_, err = kv.Range(ctx, &pb.RangeRequest{Key: []byte("a")})
			note("range", err)
			_, err = kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Serializable: true})
			note("serializable range", err)
			_, err = kv.Txn(ctx, &pb.TxnRequest{Success: put})
			note("txn", err)
			_, err = kv.Txn(ctx, &pb.TxnRequest{Success: get})
			note("txn that reads", err)
			_, err = kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a")})
			note("delete", err)
			_, err = kv.Compact(ctx, &pb.CompactionRequest{Revision: 2})
			note("compact", err)
			_, err = lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
			note("grant", err)
			_, err = lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: granted.GetID()})
			note("revoke", err)
			_, err = lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: granted.GetID()})
			note("time to live", err)
			_, err = maint.HashKV(ctx, &pb.HashKVRequest{})
			note("hash", err)
			st, err := maint.Status(ctx, &pb.StatusRequest{})
			note(strings.ReplaceAll(fmt.Sprint("status ", st.GetErrors()), "  ", " "), err) // protobuf varies its blanks
			for _, path := range []string{"/health", "/health?exclude=CORRUPT", "/livez", "/readyz/serializable_read", "/readyz/data_corruption"} {
				body, err := getBody(ctx, m.ClientURL+path)
				note(fmt.Sprintf("%s %s", path, body), err)
			}
			alarm(pb.AlarmRequest_DEACTIVATE)
			_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("a")})
			note("put after", err)
		}
	}
	for i, want := range told[cluster.Etcd] {
		if have := told[cluster.Belay][i]; have != want {
			t.Errorf("Belay %s\netcd  %s", have, want)
		}
	}
}
