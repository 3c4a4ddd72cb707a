package check

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// snapshotFamilies count what is sent and received.
var snapshotFamilies = []string{
	"etcd_network_snapshot_send_success", "etcd_network_snapshot_send_total_duration_seconds",
	"etcd_network_snapshot_receive_success", "etcd_network_snapshot_receive_total_duration_seconds",
}

// TestLagSeen leaves a follower so far behind that it needs a snapshot, and
// compares what an operator sees of that: lines, fields and metrics.
func TestLagSeen(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 50 MB, twice")
	}
	kinds := []cluster.Kind{cluster.Etcd, cluster.Belay}
	days := make([]*day, len(kinds))
	t.Run("lag", func(t *testing.T) {
		for i, kind := range kinds {
			t.Run(string(kind), func(t *testing.T) {
				t.Parallel()
				days[i] = playLag(t, kind)
			})
		}
	})
	if t.Failed() {
		return
	}
	theirs, ours := merge(t, days[0]), merge(t, days[1])
	for _, name := range snapshotFamilies {
		a, b := sum(theirs, name), sum(ours, name)
		if a == 0 || b == 0 {
			t.Errorf("%s: etcd %v, Belay %v", name, a, b)
			continue
		}
		want, _ := shape(theirs[name])
		if have, _ := shape(ours[name]); have != want {
			t.Errorf("%s is\n%s, not\n%s", name, have, want)
		}
	}
	for _, name := range []string{"etcd_network_snapshot_send_inflights_total", "etcd_network_snapshot_receive_inflights_total"} {
		if ours[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	for _, text := range []string{
		"sending database snapshot", "sent database snapshot", "receiving database snapshot", "received and saved database snapshot",
		"applying snapshot", "applied snapshot", "kvstore restored",
	} {
		for k, sets := range days[0].lines {
			if k.text != text {
				continue
			}
			have, ok := days[1].lines[k]
			if !ok {
				t.Errorf("etcd says %q; Belay does not", text)
			}
			for fields := range sets {
				if text == "sending database snapshot" {
					fields = "remote-peer-id,snapshot-index" // it is streamed: its size is known when it was sent
				}
				if ok && !hasFields(have, fields) {
					t.Errorf("%q: etcd's fields %s, Belay's %v", text, fields, have)
				}
			}
		}
	}
}

func playLag(t *testing.T, kind cluster.Kind) *day {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	args := []string{"--unsafe-no-fsync"}
	if kind == cluster.Etcd {
		args = append(args, "--snapshot-count=10", "--snapshot-catchup-entries=5")
	}
	c := startCluster(t, cluster.Config{Kind: kind, Binary: binaryOf(t, kind), Size: 3, Dir: t.TempDir(), Args: args})
	d := &day{lines: map[lineKey]map[string]bool{}, scrapes: map[string][]byte{}}
	client := newClient(t, c.Endpoints())
	leader := leaderOf(ctx, t, c, client)
	victim := slices.DeleteFunc(slices.Clone(c.Members), func(m *cluster.Member) bool { return m == leader })[0]
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v\n%s", kind, err, c.Tails(10))
		}
	}
	must(victim.Kill())
	writer := newClient(t, []string{leader.Endpoint()}) // a put under way to the killed one is not sent again
	value := string(make([]byte, 1<<20))
	i := 0
	put := func() error {
		i++
		return eventually(ctx, func() error { // another leader, perhaps
			_, err := writer.Put(ctx, fmt.Sprintf("key%d", i%3), value)
			return err
		})
	}
	for range 50 { // more than Belay's leader keeps of its log in memory, 32 MiB
		must(put())
	}
	if kind == cluster.Belay {
		must(outrun(ctx, t, c, put))
	}
	must(victim.Start())
	must(eventually(ctx, func() error {
		var text []byte
		for _, m := range c.Members {
			var err error
			if text, err = getBody(ctx, m.ClientURL+"/metrics"); err != nil {
				return err
			}
			d.scrapes[m.Name] = text
		}
		all := merge(t, d)
		for _, name := range snapshotFamilies { // a scrape may see one counted and not yet the other
			if sum(all, name) == 0 {
				return fmt.Errorf("no snapshot was sent and received: no %s", name)
			}
		}
		return nil
	}))
	must(victim.WaitReady(ctx))
	for _, m := range c.Members {
		d.readLog(t, m.LogPath)
	}
	return d
}
