package check

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// ward is three members with --heal, written to all the time by way of two of them.
type ward struct {
	c      *cluster.Cluster
	writes atomic.Int64
	failed atomic.Int64
}

const wardKeys = 500

func newWard(ctx context.Context, t *testing.T, args ...string) *ward {
	onlyBelay(t)
	w := new(ward)
	w.c = startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3, Args: append([]string{"--heal"}, args...)})
	client := newClient(t, w.c.Endpoints())
	var filling sync.WaitGroup
	for i := range 10 {
		filling.Go(func() {
			for k := i; k < wardKeys; k += 10 {
				value := make([]byte, 1000) // nothing to compress, so that a byte altered is one of a value
				switch k % 25 {
				case 0:
					value = make([]byte, 20_000) // in a file of values
				case 1:
					value = make([]byte, 100_000) // in a segment of the log
				}
				_, _ = rand.Read(value) // it never fails
				if _, err := client.Put(ctx, fmt.Sprintf("key%05d", k), string(value)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	filling.Wait()
	return w
}

// load writes by way of all members but one, until done is called, which reports failures.
func (w *ward) load(ctx context.Context, t *testing.T, but *cluster.Member) (done func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, m := range w.c.Members {
		if m == but {
			continue
		}
		client := newClient(t, []string{m.Endpoint()})
		for i := range 2 {
			running.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					value := fmt.Sprint(n)
					if n%10 == 0 {
						value += strings.Repeat("v", 40_000) // in a segment of the log
					}
					_, err := client.Put(ctx, fmt.Sprintf("load/%s/%d", m.Name, i), value)
					switch {
					case ctx.Err() != nil:
					case err != nil:
						w.failed.Add(1)
						t.Errorf("a write by way of %s failed: %v", m.Name, err)
					default:
						w.writes.Add(1)
					}
				}
			})
		}
	}
	return func() { cancel(); running.Wait() }
}

// others are the members without one, and a client of them.
func (w *ward) others(t *testing.T, but *cluster.Member) *clientv3.Client {
	var rest []*cluster.Member
	for _, m := range w.c.Members {
		if m != but {
			rest = append(rest, m)
		}
	}
	return admin(t, rest...)
}

// well waits, within a minute, until a member votes, has the others' data and can read all of it,
// and no healing is under way. It returns its id.
func (w *ward) well(ctx context.Context, t *testing.T, m *cluster.Member, client *clientv3.Client) (id uint64) {
	t.Helper()
	own := newClient(t, []string{m.Endpoint()})
	deadline := time.Now().Add(time.Minute)
	for {
		select {
		case <-m.Exited(): // as a supervisor does: damage that an entry meets as it is applied ends the process
			t.Logf("%s ended, and is started again: %v", m.Name, m.ExitErr())
			if err := errors.Join(m.Kill(), m.Start()); err != nil { // it is gone: so that it may start
				t.Fatal(err)
			}
		default:
		}
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := func() error {
			list, err := client.MemberList(try)
			if err != nil {
				return err
			}
			if len(list.Members) != 3 {
				return fmt.Errorf("members: %v", list.Members)
			}
			for _, e := range list.Members {
				if e.IsLearner || len(e.PeerURLs) != 1 || strings.Contains(e.PeerURLs[0], "?") {
					return fmt.Errorf("members: %v", list.Members)
				}
				if e.Name == m.Name {
					id = e.ID
				}
			}
			st, err := own.Status(try, m.Endpoint())
			if err != nil {
				return err
			}
			if st.Header.MemberId != id {
				return fmt.Errorf("it is %x, the others know it as %x", st.Header.MemberId, id)
			}
			if _, err := own.Get(try, "key", clientv3.WithPrefix(), clientv3.WithLimit(1)); err != nil {
				return err // it answers with a quorum
			}
			all, err := own.Get(try, "key", clientv3.WithPrefix(), clientv3.WithSerializable())
			if err != nil {
				return err
			}
			if len(all.Kvs) != wardKeys {
				return fmt.Errorf("it has %d keys", len(all.Kvs))
			}
			if _, err := os.Stat(filepath.Join(m.DataDir, "healing.json")); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("it is healing (%v)", err)
			}
			return nil
		}()
		cancel()
		if err == nil {
			return id
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not well within a minute: %v; its log ends:\n%s", m.Name, err, m.LogTail(15))
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}

// flipMiddle alters the byte in the middle of a file.
func flipMiddle(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 0 {
		flip(t, path, st.Size()/2)
	}
}

func regularFiles(t *testing.T, dir string) (files []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return files
}

// forgetHealed lets a member heal more often within an hour than it would.
func forgetHealed(t *testing.T, m *cluster.Member) {
	old, err := filepath.Glob(filepath.Join(m.DataDir, "damaged-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHeal: a member that lost all of its data, the leader whose tables are altered as it runs, and
// one whose log is: each is a voter again within a minute, no write fails, and nobody types a command.
// With two of three damaged nothing is changed, and the logs say which copy is best.
func TestHeal(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	w := newWard(ctx, t)
	client := newClient(t, w.c.Endpoints())
	leader := leaderOf(ctx, t, w.c, client)
	follower := w.c.Members[0]
	if follower == leader {
		follower = w.c.Members[1]
	}
	rest := w.others(t, follower)
	before := w.well(ctx, t, follower, rest)
	done := w.load(ctx, t, follower)
	if err := follower.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(follower.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := follower.Start(); err != nil {
		t.Fatal(err)
	}
	if after := w.well(ctx, t, follower, rest); after == before {
		t.Error("it has the id of before")
	}
	done()

	// The leader, as it runs. It is stopped in order once, so that there are tables, and started, so
	// that it has read none of them.
	leader = leaderOf(ctx, t, w.c, client)
	rest = w.others(t, leader)
	done = w.load(ctx, t, leader)
	if err := errors.Join(leader.Stop(ctx), leader.Start()); err != nil {
		t.Fatal(err)
	}
	if err := leader.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := moveLeader(ctx, w.c, leader, ""); err != nil {
		t.Fatal(err)
	}
	st, err := client.Status(ctx, leader.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	before = st.Header.MemberId
	// A start reads keys, and so the tables; values in files of their own it does not.
	altered := 0
	for _, path := range regularFiles(t, filepath.Join(leader.DataDir, "member", "store")) {
		if strings.HasSuffix(path, ".blob") || strings.HasSuffix(path, ".sst") {
			flipMiddle(t, path)
			altered++
		}
	}
	if altered == 0 {
		t.Fatal("no tables")
	}
	if err := eventually(ctx, func() error {
		list, err := rest.MemberList(ctx)
		if err == nil && slices.ContainsFunc(list.Members, func(e *pb.Member) bool { return e.ID == before }) {
			get, stop := context.WithTimeout(ctx, 2*time.Second)
			defer stop()
			_, readErr := newClient(t, []string{leader.Endpoint()}).Get(get, "", clientv3.WithPrefix(), clientv3.WithSerializable())
			err = fmt.Errorf("the damage was not found: %v, of %d files; %s", readErr, altered, leader.LogTail(6))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.well(ctx, t, leader, rest)
	done()
	if w.failed.Load() != 0 || w.writes.Load() < 10 {
		t.Errorf("%d of %d writes failed", w.failed.Load(), w.writes.Load())
	}
	t.Logf("%d writes, none failed", w.writes.Load())

	// Two of three.
	var ill []*cluster.Member
	for _, m := range w.c.Members[:2] {
		if err := m.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		forgetHealed(t, m)
		flipMiddle(t, filepath.Join(m.DataDir, "member", "log", "META"))
		ill = append(ill, m)
	}
	sizes := make(map[string]int)
	for _, m := range ill {
		sizes[m.Name] = len(regularFiles(t, filepath.Join(m.DataDir, "member")))
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range ill {
		if err := eventually(ctx, func() error {
			text, err := os.ReadFile(m.LogPath)
			if err != nil || !strings.Contains(string(text), "healing: refused: more members are damaged") || !strings.Contains(string(text), `"best-copy":"`+w.c.Members[2].Name+`"`) {
				return errors.Join(err, fmt.Errorf("%s does not say that it refuses, and which copy is best", m.Name))
			}
			return nil
		}); err != nil {
			t.Fatalf("%v: %s", err, m.LogTail(5))
		}
		if n := len(regularFiles(t, filepath.Join(m.DataDir, "member"))); n != sizes[m.Name] {
			t.Errorf("%s has %d files of %d", m.Name, n, sizes[m.Name])
		}
	}
	// One of them gets its file back: it starts, and the other one heals.
	if err := ill[0].Stop(ctx); err != nil && !strings.Contains(err.Error(), "signal: terminated") {
		t.Fatal(err)
	}
	flipMiddle(t, filepath.Join(ill[0].DataDir, "member", "log", "META"))
	if err := errors.Join(os.Remove(filepath.Join(ill[0].DataDir, "healing.json")), ill[0].Start()); err != nil {
		t.Fatal(err)
	}
	w.well(ctx, t, ill[1], admin(t, ill[0], w.c.Members[2]))
	w.well(ctx, t, ill[0], admin(t, ill[1], w.c.Members[2]))
}

// TestHealDiffering alters what a follower, and then the leader, has stored, so that its data differs
// from the others': the corruption check names it, it is a voter again within a minute with the
// others' data, the alarm is gone, and writes go on, without a command. make heal.
func TestHealDiffering(t *testing.T) {
	if os.Getenv("BELAY_HEAL") != "all" {
		t.Skip("make heal; node.TestHealDiffering is of one process")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	w := newWard(ctx, t, "--corrupt-check-time=2s")
	m := w.c.Members[1]
	rest := w.others(t, m)
	for _, leads := range []bool{false, true} {
		forgetHealed(t, m)
		id := w.well(ctx, t, m, rest)
		if err := m.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		alterValue(t, m, fmt.Sprintf("key%05d", 7))
		began := time.Now()
		if err := errors.Join(m.Start(), m.WaitReady(ctx)); err != nil {
			t.Fatal(err)
		}
		if leads {
			if err := moveLeader(ctx, w.c, m, ""); err != nil {
				t.Logf("it had left before it could lead: %v", err)
			}
		}
		if err := eventually(ctx, func() error {
			list, err := rest.MemberList(ctx)
			if err == nil && slices.ContainsFunc(list.Members, func(e *pb.Member) bool { return e.ID == id }) {
				err = fmt.Errorf("it does not leave: %s", m.LogTail(5))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if now := w.well(ctx, t, m, rest); now == id {
			t.Error("it has the id of before")
		}
		if alarms, err := rest.AlarmList(ctx); err != nil || len(alarms.Alarms) > 0 {
			t.Errorf("alarms: %v, %v", alarms, err)
		}
		if _, err := rest.Put(ctx, "after", "v"); err != nil {
			t.Error(err)
		}
		t.Logf("leads %v: well and without an alarm %.1f s after its start", leads, time.Since(began).Seconds())
	}
}

// TestHealAnyFile alters, and then deletes, one file of a member at a time, of all that it has, and
// starts it again after a kill -9, under load. It takes minutes: make heal.
func TestHealAnyFile(t *testing.T) {
	if os.Getenv("BELAY_HEAL") != "all" {
		t.Skip("make heal")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	w := newWard(ctx, t)
	m := w.c.Members[1]
	rest := w.others(t, m)
	w.well(ctx, t, m, rest)
	done := w.load(ctx, t, m)
	defer done()
	files := 0
	tried, numbers := make(map[string]bool), regexp.MustCompile("[0-9a-f]{6,}")
	for _, remove := range []bool{false, true} {
		for {
			if err := m.Stop(ctx); err != nil { // so that there are tables
				t.Fatal(err)
			}
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
			id := w.well(ctx, t, m, rest)
			if err := m.Kill(); err != nil {
				t.Fatal(err)
			}
			path := ""
			for _, f := range regularFiles(t, filepath.Join(m.DataDir, "member")) {
				kind := numbers.ReplaceAllString(filepath.Join(filepath.Base(filepath.Dir(f)), filepath.Base(f)), "N")
				kind = fmt.Sprintf("%s %v", kind, remove)
				if !tried[kind] && filepath.Base(f) != "LOCK" {
					tried[kind], path = true, f
					break
				}
			}
			if path == "" {
				if err := m.Start(); err != nil {
					t.Fatal(err)
				}
				w.well(ctx, t, m, rest)
				break
			}
			forgetHealed(t, m)
			what := "altered"
			if remove {
				what = "deleted"
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				flipMiddle(t, path)
			}
			began := time.Now()
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
			now := w.well(ctx, t, m, rest)
			rel, _ := filepath.Rel(m.DataDir, path)
			how := "nothing was lost"
			if now != id {
				how = "it healed"
			}
			files++
			t.Logf("%s %s: %s, %.1f s", rel, what, how, time.Since(began).Seconds())
		}
	}
	done()
	t.Logf("%d writes, %d failed, %d files", w.writes.Load(), w.failed.Load(), files)
}
