package check

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// TestStopUnderLoad stops each leader of three in order, by SIGTERM, under a load on all members:
// the leader hands over first and lets open calls end, so that no client gets an error.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: checkKind(t), Size: 3})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var done atomic.Int64
	var wg sync.WaitGroup
	over := make(chan struct{})
	var mu sync.Mutex
	failed := map[string]int{}
	var longest time.Duration
	run := func(what string, call func(ctx context.Context, i int) error) {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				start := time.Now()
				call1, cancel := context.WithTimeout(ctx, 10*time.Second)
				err := call(call1, i)
				cancel()
				took := time.Since(start)
				mu.Lock()
				longest = max(longest, took)
				if err != nil {
					failed[what+": "+err.Error()]++
				}
				mu.Unlock()
				done.Add(1)
			}
		})
	}
	for w := range 8 {
		client := admin(t, c.Members...)
		run("put", func(ctx context.Context, i int) error {
			_, err := client.Put(ctx, fmt.Sprintf("put%d", w), fmt.Sprint(i))
			return err
		})
		if w%2 == 0 {
			run("get", func(ctx context.Context, i int) error {
				_, err := client.Get(ctx, fmt.Sprintf("put%d", w))
				return err
			})
		}
	}
	lessor := admin(t, c.Members...)
	lease, err := lessor.Grant(ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lessor.Put(ctx, "leased", "", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	kept, enough := context.WithCancel(ctx)
	defer enough()
	alive, err := lessor.KeepAlive(kept, lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		for range alive { // taken, so that the client has no cause to complain
		}
	})
	more := func() {
		t.Helper()
		want := done.Load() + 200
		if err := eventually(ctx, func() error {
			if n := done.Load(); n < want {
				return fmt.Errorf("%d of %d calls", n, want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 3 {
		more()
		leader := leaderOf(ctx, t, c, lessor)
		start := time.Now()
		if err := leader.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %s stopped in %v", round, leader.Name, time.Since(start).Round(time.Millisecond))
		more()
		if err := leader.Start(); err != nil {
			t.Fatal(err)
		}
		if err := leader.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if resp, err := lessor.Get(ctx, "leased"); err != nil || len(resp.Kvs) != 1 {
		t.Errorf("the lease that was kept alive: %v, %v", resp, err)
	}
	close(over)
	enough()
	wg.Wait()
	for what, n := range failed {
		t.Errorf("%d times %s", n, what)
	}
	t.Logf("%d calls, the longest %v", done.Load(), longest.Round(time.Millisecond))
}

// TestAsUnit runs Belay in etcd's place as systemd runs etcd: Type=notify, settings in the
// environment alone, SIGTERM to stop it. What it warns of is what etcd does not know either, or
// what has no effect here.
func TestAsUnit(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	dir := t.TempDir()
	socket := filepath.Join(dir, "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	var urls [2]string
	for i := range urls {
		port, err := cluster.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		urls[i] = fmt.Sprint("http://127.0.0.1:", port)
	}
	cmd := exec.CommandContext(t.Context(), byTheNameOfEtcd(t))
	cmd.Dir = dir
	cmd.Env = []string{"NOTIFY_SOCKET=" + socket, "ETCD_NAME=unit", "ETCD_DATA_DIR=" + filepath.Join(dir, "data"),
		"ETCD_LISTEN_CLIENT_URLS=" + urls[0], "ETCD_ADVERTISE_CLIENT_URLS=" + urls[0],
		"ETCD_LISTEN_PEER_URLS=" + urls[1], "ETCD_INITIAL_ADVERTISE_PEER_URLS=" + urls[1], "ETCD_INITIAL_CLUSTER=unit=" + urls[1],
		"ETCD_INITIAL_CLUSTER_STATE=new", "ETCD_HEARTBEAT_INTERVAL=100", "ETCD_MAX_WALS=3", "ETCD_ENABLE_V2=true", "ETCD_LOG_LEVEL="}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := systemd.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, 100)
	if n, err := systemd.Read(packet); err != nil || string(packet[:n]) != "READY=1" {
		t.Errorf("systemd was told %q, %v", packet[:n], err)
	}
	if _, err := newClient(t, []string{strings.TrimPrefix(urls[0], "http://")}).Put(t.Context(), "a", "b"); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if exit, ok := err.(*exec.ExitError); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v, not by the signal", err)
	}
	var warned []string
	for line := range strings.Lines(said.String()) {
		var l map[string]any
		if json.Unmarshal([]byte(line), &l) != nil {
			t.Errorf("not a line of the log: %s", line)
			continue
		}
		// What was slow is warned of, too.
		if about := cmp.Or(l["flag-name"], l["environment-variable"]); l["level"] != "info" && about != nil {
			warned = append(warned, fmt.Sprintf("%v: %v", l["msg"], about))
		}
	}
	slices.Sort(warned)
	want := []string{
		"flag has no effect in Belay - ignoring: max-wals",
		"unrecognized environment variable: ETCD_ENABLE_V2=true",
		"unrecognized environment variable: ETCD_LOG_LEVEL=", // so etcd calls an empty one
	}
	if !slices.Equal(warned, want) {
		t.Errorf("warned of %q, want %q", warned, want)
	}
}

// TestStopBesideASlowFollower: a leader that stops waits until a member that slept through the
// election knows of it. Until then that one forwards its clients' writes to it.
func TestStopBesideASlowFollower(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	client := admin(t, c.Members...)
	for round := range 3 {
		leader := leaderOf(ctx, t, c, client)
		slow := slices.DeleteFunc(slices.Clone(c.Members), func(m *cluster.Member) bool { return m == leader })[0]
		writer := admin(t, slow)
		over := make(chan struct{})
		var done atomic.Int64
		var writing sync.WaitGroup
		for w := range 8 {
			writing.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-over:
						return
					default:
					}
					if _, err := writer.Put(ctx, fmt.Sprint("slow", w), fmt.Sprint(i)); err != nil {
						t.Errorf("round %d: %v", round, err)
						return
					}
					done.Add(1)
				}
			})
		}
		if err := eventually(ctx, func() error {
			if done.Load() < 100 {
				return errors.New("few writes")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := slow.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		var stopping sync.WaitGroup
		stopping.Go(func() {
			if err := leader.Stop(ctx); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(500 * time.Millisecond) // the election takes a third of it
		if err := slow.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		stopping.Wait()
		close(over)
		writing.Wait()
		if err := leader.Start(); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
