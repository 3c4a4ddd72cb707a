package check

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/proof/cluster"
)

// TestOperatorsView plays the same day on a cluster of Belay and on one of etcd, and compares what
// an operator sees of it: the log lines with their fields, and the metrics. A table below lists
// what etcd shows and Belay does not, with the reason.
func TestOperatorsView(t *testing.T) {
	kinds := []cluster.Kind{cluster.Etcd, cluster.Belay}
	days := make([]*day, len(kinds))
	t.Run("day", func(t *testing.T) {
		for i, kind := range kinds {
			t.Run(string(kind), func(t *testing.T) {
				t.Parallel()
				days[i] = playDay(t, kind)
			})
		}
	})
	if t.Failed() {
		return
	}
	t.Run("logs", func(t *testing.T) { compareLogs(t, days[0], days[1]) })
	t.Run("metrics", func(t *testing.T) { compareMetrics(t, days[0], days[1]) })
}

// day is what was seen of one cluster.
type day struct {
	lines   map[lineKey]map[string]bool // by level, logger and text: the sets of fields seen
	scrapes map[string][]byte           // /metrics of each member at the end, by name
	early   []byte                      // of the first member, before anything was asked
}

type lineKey struct{ level, logger, text string }

// playDay runs the scenario. Everything in it is what operators do, or what happens to them.
func playDay(t *testing.T, kind cluster.Kind) *day {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := startCluster(t, cluster.Config{Kind: kind, Binary: binaryOf(t, kind), Size: 3, Dir: t.TempDir(), Args: []string{
		"--metrics=extensive", "--warning-apply-duration=1ns", "--warning-unary-request-duration=1ns",
		"--pre-vote=true", "--strict-reconfig-check=false", "--auto-compaction-mode=revision", "--auto-compaction-retention=1000",
	}})
	d := &day{lines: map[lineKey]map[string]bool{}, scrapes: map[string][]byte{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v\n%s", kind, err, c.Tails(10))
		}
	}
	scrape := func(m *cluster.Member) []byte {
		t.Helper()
		body, err := getBody(ctx, m.ClientURL+"/metrics")
		must(err)
		return body
	}
	d.early = scrape(c.Members[0])

	all := newClient(t, c.Endpoints())
	lead := leaderOf(ctx, t, c, all)
	conn, err := lead.Dial()
	must(err)
	defer conn.Close()
	kv := pb.NewKVClient(conn) // of the leader alone, without retries

	// Keys.
	for i := range 20 {
		_, err := kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "key%d", i%5), Value: []byte("value")})
		must(err)
	}
	for _, r := range []*pb.RangeRequest{{Key: []byte("key1")}, {Key: []byte("key"), RangeEnd: []byte("kez"), Serializable: true}} {
		_, err := kv.Range(ctx, r)
		must(err)
	}
	_, err = kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("key0")})
	must(err)
	_, err = kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("key1"), Value: []byte("x")}}},
		{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("key2")}}},
	}})
	must(err)
	_, err = kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("key2")}}}}})
	must(err)
	refusedCall := func(err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: what should have been refused was not", kind)
		}
	}
	_, err = kv.Range(ctx, &pb.RangeRequest{Key: []byte("key"), Revision: 1 << 40})
	refusedCall(err)
	_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("key1"), Value: []byte("x"), Lease: 99})
	refusedCall(err)

	// Watches, with an event and a cancel.
	watching, stopWatching := context.WithCancel(ctx)
	events := all.Watch(watching, "watched", clientv3.WithCreatedNotify())
	<-events
	_, err = all.Put(ctx, "watched", "1")
	must(err)
	<-events
	stopWatching()

	// Leases: one is renewed and revoked, one expires.
	lease, err := all.Grant(ctx, 60)
	must(err)
	_, err = all.KeepAliveOnce(ctx, lease.ID)
	must(err)
	_, err = all.Put(ctx, "leased", "1", clientv3.WithLease(lease.ID))
	must(err)
	_, err = all.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	must(err)
	_, err = all.Revoke(ctx, lease.ID)
	must(err)
	short, err := all.Grant(ctx, 2)
	must(err)

	// Maintenance.
	_, err = all.Compact(ctx, 10, clientv3.WithCompactPhysical())
	must(err)
	_, err = all.Compact(ctx, 15, clientv3.WithCompactPhysical())
	must(err)
	_, err = all.Compact(ctx, 10)
	refusedCall(err)
	for _, m := range c.Members {
		_, err := all.HashKV(ctx, m.Endpoint(), 0)
		must(err)
		_, err = all.Defragment(ctx, m.Endpoint())
		must(err)
	}
	_, err = pb.NewMaintenanceClient(conn).Hash(ctx, &pb.HashRequest{})
	must(err)
	snapshot, err := all.Snapshot(ctx)
	must(err)
	_, err = io.Copy(io.Discard, snapshot)
	must(err)
	snapshot.Close()
	must(setAlarm(ctx, conn, pb.AlarmRequest_ACTIVATE))
	_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("key1"), Value: []byte("x")})
	refusedCall(err)
	for _, path := range []string{"/health", "/readyz", "/livez"} {
		_, err = getBody(ctx, lead.ClientURL+path)
		must(err)
	}
	must(setAlarm(ctx, conn, pb.AlarmRequest_DEACTIVATE))
	for _, path := range []string{"/health", "/readyz", "/livez", "/version"} {
		_, err = getBody(ctx, lead.ClientURL+path)
		must(err)
	}

	must(authHour(ctx, conn))

	// The short lease is gone.
	must(eventually(ctx, func() error {
		ttl, err := all.TimeToLive(ctx, short.ID)
		if err == nil && ttl.TTL != -1 {
			err = errors.New("the lease has not expired")
		}
		return err
	}))

	// A learner joins, is promoted, moved and removed.
	extra := joiner(t, c, kind)
	added, err := all.MemberAddAsLearner(ctx, []string{extra.PeerURL})
	must(err)
	_, err = all.MemberPromote(ctx, added.Member.ID)
	refusedCall(err)
	must(extra.Start())
	must(eventually(ctx, func() error { _, err := all.MemberPromote(ctx, added.Member.ID); return err }))
	must(extra.WaitReady(ctx))
	_, err = all.MemberUpdate(ctx, added.Member.ID, []string{strings.Replace(extra.PeerURL, "127.0.0.1", "localhost", 1)})
	must(err)
	must(eventually(ctx, func() error { _, err := all.MemberRemove(ctx, added.Member.ID); return err }))
	select {
	case <-extra.Exited():
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}

	// Leadership moves; the new leader's process is paused for longer than two heartbeats and less
	// than an election.
	var followers []*cluster.Member
	must(eventually(ctx, func() error {
		lead = leaderOf(ctx, t, c, all)
		followers = slices.DeleteFunc(slices.Clone(c.Members), func(m *cluster.Member) bool { return m == lead })
		target, err := all.Status(ctx, followers[0].Endpoint())
		if err != nil {
			return err
		}
		conn, err := lead.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = pb.NewMaintenanceClient(conn).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: target.Header.MemberId})
		return err
	}))
	lead = followers[0]
	must(c.WaitReady(ctx))
	must(lead.Signal(syscall.SIGSTOP))
	time.Sleep(600 * time.Millisecond) // what is tested is the stop itself
	must(lead.Signal(syscall.SIGCONT))
	must(c.WaitReady(ctx))

	// A follower is killed and comes back; another stops in order and comes back.
	victim := followers[1]
	for _, m := range c.Members { // what the killed process counted would be lost
		d.scrapes[m.Name+" before"] = scrape(m)
	}
	must(victim.Kill())
	alive := newClient(t, []string{lead.Endpoint()}) // a put under way to the killed one is not sent again
	for range 3 {
		must(eventually(ctx, func() error { _, err := alive.Put(ctx, "while", "down"); return err }))
	}
	must(eventually(ctx, func() error {
		if n := sum(parseScrape(t, scrape(lead)), "etcd_network_peer_sent_failures_total"); n == 0 {
			return errors.New("nothing was counted for the killed peer")
		}
		return nil
	}))
	must(victim.Start())
	must(c.WaitReady(ctx))
	for _, m := range c.Members {
		d.scrapes[m.Name] = scrape(m)
	}
	must(victim.Stop(ctx))
	must(victim.Start())
	must(c.WaitReady(ctx))
	for _, m := range c.Members {
		must(m.Stop(ctx))
	}
	for _, m := range append(slices.Clone(c.Members), extra) {
		d.readLog(t, m.LogPath)
	}
	return d
}

func setAlarm(ctx context.Context, conn *grpc.ClientConn, action pb.AlarmRequest_AlarmAction) error {
	_, err := pb.NewMaintenanceClient(conn).Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: 1, Alarm: pb.AlarmType_NOSPACE})
	return err
}

func getBody(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// joiner is a fourth member for a running cluster of three.
func joiner(t *testing.T, c *cluster.Cluster, kind cluster.Kind) *cluster.Member {
	t.Helper()
	other := newCluster(t, cluster.Config{Kind: kind, Binary: binaryOf(t, kind), Size: 1, Dir: t.TempDir()}).Members[0]
	other.Name = "m4"
	other.SetArgs(func(args []string) []string {
		var initial []string
		for _, m := range append(slices.Clone(c.Members), other) {
			initial = append(initial, m.Name+"="+m.PeerURL)
		}
		for i := range args[:len(args)-1] {
			switch args[i] {
			case "--name":
				args[i+1] = other.Name
			case "--initial-cluster":
				args[i+1] = strings.Join(initial, ",")
			case "--initial-cluster-state":
				args[i+1] = "existing"
			}
		}
		return args
	})
	return other
}

var (
	rotating  = regexp.MustCompile(`[0-9a-f]{6,}|\d+`)
	elections = regexp.MustCompile(`became leader|became follower|elected leader|is starting a new election`)
	bboltLog  = regexp.MustCompile(`^(Opening|Committing|Starting|Creating|.*(bbolt|db file))`)
)

func (d *day) readLog(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line map[string]any
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue // raft's panics and such; there are none on a day like this
		}
		text := func(key string) string { s, _ := line[key].(string); return s }
		k := lineKey{text("level"), text("logger"), text("msg")}
		if k.logger == "raft" {
			k.text = rotating.ReplaceAllString(k.text, "N")
		}
		fields := slices.DeleteFunc(slices.Sorted(maps.Keys(line)), func(f string) bool {
			return slices.Contains([]string{"level", "ts", "logger", "caller", "msg", "stacktrace"}, f)
		})
		if d.lines[k] == nil {
			d.lines[k] = map[string]bool{}
		}
		d.lines[k][strings.Join(fields, ",")] = true
	}
}

// silent are etcd's texts that Belay does not say on such a day, and why.
func silent() map[string]string {
	reasons := map[string][]string{
		"there is no v2 store, in which etcd does what it does twice": {
			"Skipped updating non-existent member in v2store", "ignore already added member", "ignore already promoted member",
			"ignore already removed member", "ignore promoting non-existent member", "skipped removing already removed member",
		},
		"the log and the store are others, and have no such phases or files": {
			"bootstrapping cluster", "bootstrapping raft", "bootstrapping storage", "bootstrap successfully", "Bootstrapping WAL from snapshot",
			"constructed a snapshot from WAL record", "Constructed a new raft snapshot from v3 state", "Skipping snapshot backend",
			"No snapshot found. Recovering WAL from scratch!", "restore consistentIndex", "started to purge file", "compact tree index",
		},
		"there is no schema on disk that follows the cluster version": {
			"cluster version differs from storage version.", "updated storage version", "Failed to detect schema version", "failed to update storage version",
		},
		"etcd's noise when it stops": {
			"stopping insecure grpc server due to error", "stopped insecure grpc server due to error", "setting up serving from embedded etcd failed.",
			"server has stopped; stopping storage version's monitor", "server has stopped; stopping cluster version's monitor",
		},
		"one port for gRPC and HTTP costs nothing here": {
			"Running http and grpc server on single port. This is not recommended for production.", "cmux::serve",
		},
		"names of URLs are not resolved before they are compared": {"resolved URL Host"},
		"said with another cause: the loop that beats waits for no disk": {
			"leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk",
		},
		"depends on who leads, or on the moment; the code has it": {
			"updated cluster version", "failed to find remote peer in cluster", "rejected stream from remote peer because it was removed",
			"skipped attributes update of removed member", "leadership transfer failed", "failed to process Raft message",
			"dropped internal Raft message since sending buffer is full (overloaded network)", "prober detected unhealthy status",
			"failed to reach the peer URL", "failed to get version", "rejected Raft message from removed member", "waiting for ReadIndex response took too long, retrying",
		},
		"said only when something was slow just then; Belay has the text or tells it in the line of the slow request": {
			"slow fdatasync", "failed to publish local member to cluster through raft", "prober found high clock drift", "failed to revoke lease",
			"failed to update cluster version", "trace", "first commit in current term: resending ReadIndex request",
			"ignored out-of-date read index response; local node read indexes queueing up and waiting to be in sync with leader",
			"timed out waiting for read index response (local node might have slow network)", "failed to get read index from Raft",
			"dropped Raft message since sending buffer is full (overloaded network)",
		},
	}
	texts := map[string]string{}
	for reason, list := range reasons {
		for _, text := range list {
			texts[text] = reason
		}
	}
	return texts
}

// otherFields are fields that Belay's texts lack, and why.
func otherFields() map[string]string {
	return map[string]string{
		"starting an etcd server":                                      "what discovery, WAL and snapshot files would need",
		"initialized peer connections; fast-forwarding election ticks": "no connection is waited for, so none is counted",
	}
}

func compareLogs(t *testing.T, etcd, belay *day) {
	excused, fewer := silent(), otherFields()
	for k, sets := range etcd.lines {
		if k.logger == "bbolt" || bboltLog.MatchString(k.text) {
			continue
		}
		// Raft itself prints its lines, in both; which of them depends on the votes.
		if k.logger == "raft" && !elections.MatchString(k.text) {
			continue
		}
		have, ok := belay.lines[k]
		if !ok {
			if excused[k.text] == "" {
				t.Errorf("etcd says (%s %s) %q %v; Belay does not", k.level, k.logger, k.text, slices.Sorted(maps.Keys(sets)))
			}
			continue
		}
		if fewer[k.text] == "" && !slices.ContainsFunc(slices.Collect(maps.Keys(sets)), func(s string) bool { return hasFields(have, s) }) {
			t.Errorf("%q: etcd's fields %v, Belay's %v", k.text, slices.Sorted(maps.Keys(sets)), slices.Sorted(maps.Keys(have)))
		}
	}
	t.Logf("etcd said %d different things, Belay %d", len(etcd.lines), len(belay.lines))
}

// hasFields reports whether one of the sets has all of these fields.
func hasFields(sets map[string]bool, fields string) bool {
	for set := range sets {
		have := strings.Split(set, ",")
		if fields == "" || !slices.ContainsFunc(strings.Split(fields, ","), func(f string) bool { return !slices.Contains(have, f) }) {
			return true
		}
	}
	return false
}
