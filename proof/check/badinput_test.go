package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/proof/cluster"
)

// refused starts a member that can not start and returns what it said. It wants an exit with
// another code than 0, each of the texts in the output, and no trace of a panic.
func refused(t *testing.T, m *cluster.Member, texts ...string) string {
	t.Helper()
	before := logSize(m)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	return exits(t, m, before, texts...)
}

func logSize(m *cluster.Member) int64 {
	if st, err := os.Stat(m.LogPath); err == nil {
		return st.Size()
	}
	return 0
}

// exits waits until a member has ended by itself, and judges how.
func exits(t *testing.T, m *cluster.Member, from int64, texts ...string) string {
	t.Helper()
	select {
	case <-m.Exited():
	case <-time.After(30 * time.Second):
		m.Kill()
		t.Fatalf("%s did not exit; its log ends:\n%s", m.Name, m.LogTail(10))
	}
	var exit *exec.ExitError
	if err := m.ExitErr(); !errors.As(err, &exit) || exit.ExitCode() <= 0 {
		t.Errorf("exit: %v; a code above 0 is wanted", err)
	}
	m.Kill() // for its bookkeeping
	data, err := os.ReadFile(m.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	out := string(data[min(from, int64(len(data))):])
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("the output does not have %q:\n%s", text, abridge(out))
		}
	}
	for _, trace := range []string{"panic:", "goroutine ", "runtime error"} {
		if strings.Contains(out, trace) {
			t.Errorf("the output has a trace (%q):\n%s", trace, abridge(out))
		}
	}
	return out
}

func onlyBelay(t *testing.T) {
	if checkKind(t) != cluster.Belay {
		t.Skip("about Belay's own files")
	}
}

func TestBadFlags(t *testing.T) {
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--no-such-flag"}, 2, "flag provided but not defined: -no-such-flag"},
		{[]string{"--snapshot-count", "many"}, 2, "invalid value"},
		{[]string{"--listen-client-urls", "ftp://127.0.0.1:1"}, 2, "URL scheme must be http, https, unix, or unixs"},
		{[]string{"--listen-peer-urls", "http://127.0.0.1"}, 2, `URL address does not have the form "host:port"`},
		{[]string{"--listen-client-urls", "http://127.0.0.1:1/path"}, 2, "URL must not contain a path"},
		{[]string{"--initial-cluster-state", "odd"}, 2, "invalid value"},
		{[]string{"--heartbeat-interval", "0"}, 1, "--heartbeat-interval must be >0 (set to 0ms)"},
		{[]string{"--election-timeout", "0"}, 1, "--election-timeout must be >0 (set to 0ms)"},
		{[]string{"--heartbeat-interval", "50", "--election-timeout", "100"}, 1, "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[50ms]"},
		{[]string{"--election-timeout", "60000"}, 1, "--election-timeout[60000ms] is too long, and should be set less than 50000ms"},
		{[]string{"--listen-client-urls", "http://name.example:1", "--advertise-client-urls", "http://127.0.0.1:1"}, 1, "expected IP in URL for binding"},
		{[]string{"--listen-client-urls", "http://127.0.0.1:1"}, 1, "--advertise-client-urls is required when --listen-client-urls is set explicitly"},
		{[]string{"stray"}, 1, `is not a valid flag`},
		{[]string{"--logger", "capnslog"}, 1, "--logger=capnslog is removed in v3.5"},
		{[]string{"--name", "a", "--initial-cluster", "b=http://127.0.0.1:2380"}, 1, `couldn't find local name`},
		{[]string{"--initial-cluster", "default=http://127.0.0.1:1"}, 1, "--initial-cluster has default=http://127.0.0.1:1 but missing from --initial-advertise-peer-urls"},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			kind := checkKind(t)
			dir := t.TempDir()
			args := append([]string{"--data-dir", filepath.Join(dir, "data")}, tc.args...)
			if kind == cluster.Belay {
				args = append([]string{"server"}, args...)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, binaryOf(t, kind), args...)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != tc.code {
				t.Errorf("exit: %v, want code %d", err, tc.code)
			}
			plain := strings.ReplaceAll(string(out), `\"`, `"`)
			if !strings.Contains(plain, tc.want) {
				t.Errorf("the output does not have %q:\n%s", tc.want, abridge(plain))
			}
			if kind == cluster.Belay && (strings.Contains(plain, "panic:") || strings.Contains(plain, "goroutine ")) {
				t.Errorf("the output has a trace:\n%s", abridge(plain))
			}
		})
	}
}

func TestPortInUse(t *testing.T) {
	for _, which := range []string{"client", "peer"} {
		t.Run(which, func(t *testing.T) {
			c := newCluster(t, cluster.Config{Kind: checkKind(t), Size: 1})
			m := c.Members[0]
			addr := m.Endpoint()
			if which == "peer" {
				addr = strings.TrimPrefix(m.PeerURL, "http://")
			}
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			refused(t, m, addr, "address already in use")
		})
	}
}

// served is a single Belay member with acknowledged writes, stopped.
type served struct {
	m    *cluster.Member
	keys map[string]string
}

// newServed writes n values of the given size, then stops the member.
func newServed(t *testing.T, n, size int, stop func(m *cluster.Member)) *served {
	t.Helper()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1})
	s := &served{m: c.Members[0], keys: make(map[string]string)}
	s.write(t, n, size)
	stop(s.m)
	return s
}

func sigterm(m *cluster.Member) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_ = m.Stop(ctx)
}

func (s *served) write(t testing.TB, n, size int) {
	t.Helper()
	conn, err := s.m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for range n {
		key := fmt.Sprintf("k/%06d", len(s.keys))
		value := fmt.Sprintf("%d:", len(s.keys)) + strings.Repeat(string(rune('a'+len(s.keys)%26)), size)
		if _, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value)}); err != nil {
			t.Fatalf("put %s: %v", key, err)
		}
		s.keys[key] = value
	}
}

// complete starts the member and wants every acknowledged write.
func (s *served) complete(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if s.m.PID() == 0 {
		if err := s.m.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.m.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.read(ctx); err != nil {
		t.Fatal(err)
	}
}

// read compares all keys with what was acknowledged. An error of the server is returned as it is.
func (s *served) read(ctx context.Context) error {
	conn, err := s.m.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	got := make(map[string]string)
	for from := []byte("k/"); ; {
		resp, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: from, RangeEnd: []byte("k0"), Limit: 500})
		if err != nil {
			return err
		}
		for _, kv := range resp.Kvs {
			got[string(kv.Key)] = string(kv.Value)
		}
		if !resp.More {
			break
		}
		from = append(resp.Kvs[len(resp.Kvs)-1].Key, 0)
	}
	for key, value := range s.keys {
		if got[key] != value {
			return fmt.Errorf("lost: %s was acknowledged with %.20q and is %.20q now", key, value, got[key])
		}
	}
	return nil
}

func (s *served) logDir() string   { return filepath.Join(s.m.DataDir, "member", "log") }
func (s *served) storeDir() string { return filepath.Join(s.m.DataDir, "member", "store") }

// alter changes a file and returns how to undo it.
func alter(t testing.TB, path string, change func(data []byte)) (undo func()) {
	t.Helper()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Clone(old)
	change(data)
	if bytes.Equal(data, old) {
		t.Fatalf("%s was not changed", path)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func firstSegment(t testing.TB, dir string) string {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "segment-*.log"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments in %s: %v", dir, err)
	}
	slices.Sort(segments)
	return segments[0]
}

func TestCorruptLog(t *testing.T) {
	onlyBelay(t)
	for name, stop := range map[string]func(*cluster.Member){"stopped": sigterm, "killed": func(m *cluster.Member) { m.Kill() }} {
		t.Run(name, func(t *testing.T) {
			s := newServed(t, 400, 200, stop)
			segment := firstSegment(t, s.logDir())
			undo := alter(t, segment, func(data []byte) {
				// In the middle, but not in the zeros that fill a group's last page.
				at := len(bytes.TrimRight(data, "\x00")) / 2
				for data[at] == 0 || data[at+1] == 0 {
					at++
				}
				data[at] ^= 0x5a
			})
			refused(t, s.m, segment, "corrupt")
			undo()
			s.complete(t)
		})
	}
}

func TestLogOfAnotherVersion(t *testing.T) {
	onlyBelay(t)
	s := newServed(t, 20, 50, sigterm)
	undo := alter(t, filepath.Join(s.logDir(), "META"), func(data []byte) {
		// magic 8, crc 4 of what follows, version 4; see raftlog/format.go
		binary.LittleEndian.PutUint32(data[12:], 99)
		binary.LittleEndian.PutUint32(data[8:], crc32.Checksum(data[12:], crc32.MakeTable(crc32.Castagnoli)))
	})
	refused(t, s.m, s.logDir(), "99", "version")
	undo()
	s.complete(t)
}

func TestDamagedMeta(t *testing.T) {
	onlyBelay(t)
	s := newServed(t, 20, 50, sigterm)
	meta := filepath.Join(s.logDir(), "META")
	undo := alter(t, meta, func(data []byte) { data[20] ^= 1 })
	refused(t, s.m, meta)
	undo()
	s.complete(t)
}

// A damaged table is found when it is read, which may be after the start. What
// must never happen is an answer without the data.
func TestCorruptStore(t *testing.T) {
	onlyBelay(t)
	s := newServed(t, 1500, 2000, sigterm)
	var table string
	var most int64
	err := filepath.WalkDir(s.storeDir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".sst") {
			return err
		}
		if info, err := d.Info(); err == nil && info.Size() > most {
			table, most = path, info.Size()
		}
		return nil
	})
	if err != nil || table == "" {
		t.Fatalf("no table in %s: %v", s.storeDir(), err)
	}
	undo := alter(t, table, func(data []byte) {
		for at := len(data) / 8; at < len(data)*7/8; at += 512 {
			data[at] ^= 0x5a
		}
	})
	from := logSize(s.m)
	if err := s.m.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.m.WaitReady(ctx); err == nil {
		if err := s.read(ctx); err == nil {
			t.Fatal("the damaged table was read as if it were whole")
		} else if strings.HasPrefix(err.Error(), "lost:") {
			t.Fatalf("the damaged table was answered from: %v", err)
		}
	}
	exits(t, s.m, from, filepath.Base(table))
	undo()
	s.complete(t)
}

// TestMissingStoreFile removes a table that the store's manifest names.
func TestMissingStoreFile(t *testing.T) {
	onlyBelay(t)
	s := newServed(t, 1500, 2000, sigterm)
	tables, err := filepath.Glob(filepath.Join(s.storeDir(), "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no table in %s: %v", s.storeDir(), err)
	}
	aside := tables[0] + ".aside"
	if err := os.Rename(tables[0], aside); err != nil {
		t.Fatal(err)
	}
	from := logSize(s.m)
	if err := s.m.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.m.WaitReady(ctx); err == nil {
		if err := s.read(ctx); err == nil || strings.HasPrefix(err.Error(), "lost:") {
			t.Fatalf("a table is missing, and reads say %v", err)
		}
	}
	exits(t, s.m, from, s.storeDir(), strings.TrimSuffix(filepath.Base(tables[0]), ".sst"))
	if err := os.Rename(aside, tables[0]); err != nil {
		t.Fatal(err)
	}
	s.complete(t)
}

// TestForeignData mixes up the data of members and of clusters.
func TestForeignData(t *testing.T) {
	onlyBelay(t)
	ended := func(t *testing.T, end func(*cluster.Member)) *cluster.Cluster {
		c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3})
		for _, m := range c.Members {
			end(m)
		}
		return c
	}
	stopped := func(t *testing.T) *cluster.Cluster { return ended(t, sigterm) }
	swap := func(t *testing.T, a, b string) {
		if err := errors.Join(os.Rename(a, a+".x"), os.Rename(b, a), os.Rename(a+".x", b)); err != nil {
			t.Fatal(err)
		}
	}
	comesBack := func(t *testing.T, c *cluster.Cluster) {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		if err := c.Start(ctx); err != nil {
			t.Fatalf("with everything in its place again: %v", err)
		}
	}
	for name, end := range map[string]func(*cluster.Member){
		"the data directory of another member":                                        sigterm,
		"the data directory of another member, killed a moment after its first start": func(m *cluster.Member) { m.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			c := ended(t, end)
			a, b := c.Members[0], c.Members[1]
			swap(t, a.DataDir, b.DataDir)
			refused(t, a, a.DataDir)
			swap(t, a.DataDir, b.DataDir)
			comesBack(t, c)
		})
	}
	t.Run("the addresses of another member", func(t *testing.T) {
		c := stopped(t)
		peer := func(m *cluster.Member) string { return "--listen-peer-urls=" + m.PeerURL }
		for _, m := range []*cluster.Member{c.Members[0], c.Members[2]} {
			other := c.Members[2]
			if m == other {
				other = c.Members[0]
			}
			m.SetArgs(func(args []string) []string { return append(args, peer(other)) })
		}
		for _, m := range c.Members {
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
		}
		// Each is answered by another one than it speaks to: none of them was removed.
		for _, m := range c.Members {
			if err := eventually(t.Context(), func() error {
				if !strings.Contains(m.LogTail(1000), "mismatch") {
					return errors.New("nothing reached it that was for another")
				}
				return nil
			}); err != nil && m != c.Members[1] { // the second one is where it was
				t.Errorf("%s: %v", m.Name, err)
			}
		}
		for _, m := range c.Members {
			select {
			case <-m.Exited():
				t.Errorf("%s ended:\n%s", m.Name, m.LogTail(3))
			default:
			}
			sigterm(m)
			m.SetArgs(func(args []string) []string {
				return slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "--listen-peer-urls=") })
			})
		}
		comesBack(t, c)
	})
	t.Run("the log of another member", func(t *testing.T) {
		c := stopped(t)
		a, b := filepath.Join(c.Members[0].DataDir, "member", "log"), filepath.Join(c.Members[1].DataDir, "member", "log")
		swap(t, a, b)
		refused(t, c.Members[0], filepath.Join(c.Members[0].DataDir, "member"))
		swap(t, a, b)
		comesBack(t, c)
	})
	t.Run("the log of another cluster", func(t *testing.T) {
		a, b := newServed(t, 10, 10, sigterm), newServed(t, 10, 10, sigterm)
		swap(t, a.logDir(), b.logDir())
		refused(t, a.m, filepath.Join(a.m.DataDir, "member"))
		swap(t, a.logDir(), b.logDir())
		a.complete(t)
		b.complete(t)
	})
	t.Run("the log is missing", func(t *testing.T) {
		s := newServed(t, 10, 10, sigterm)
		aside := s.m.DataDir + ".aside"
		if err := os.Rename(s.logDir(), aside); err != nil {
			t.Fatal(err)
		}
		refused(t, s.m, s.logDir())
		if err := errors.Join(os.RemoveAll(s.logDir()), os.Rename(aside, s.logDir())); err != nil {
			t.Fatal(err)
		}
		s.complete(t)
	})
	t.Run("a directory in use", func(t *testing.T) {
		c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1})
		second := newCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1, DataDir: func(int) string { return c.Members[0].DataDir }})
		refused(t, second.Members[0], c.Members[0].DataDir)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.WaitReady(ctx); err != nil {
			t.Fatalf("the first suffers from the second: %v", err)
		}
	})
	t.Run("a data directory of etcd", func(t *testing.T) {
		e := startCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1})
		sigterm(e.Members[0])
		c := newCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1, DataDir: func(int) string { return e.Members[0].DataDir }})
		refused(t, c.Members[0], e.Members[0].DataDir, "etcd")
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := e.Start(ctx); err != nil {
			t.Fatalf("etcd no longer starts from it: %v", err)
		}
	})
	t.Run("an etcd on a data directory of Belay", func(t *testing.T) {
		s := newServed(t, 10, 10, sigterm)
		etcd := newCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1, DataDir: func(int) string { return s.m.DataDir }}).Members[0]
		if err := etcd.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-etcd.Exited():
		case <-time.After(30 * time.Second):
			t.Fatal("etcd serves from it")
		}
		snap := filepath.Join(s.m.DataDir, "member", "snap")
		if !strings.Contains(etcd.LogTail(100), snap) {
			t.Errorf("it ended for another reason:\n%s", etcd.LogTail(10))
		}
		s.complete(t)

		// One that did start there, once.
		sigterm(s.m)
		other := startCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1}).Members[0]
		sigterm(other)
		aside := t.TempDir()
		for _, name := range []string{"snap", "wal"} {
			if err := errors.Join(os.RemoveAll(filepath.Join(s.m.DataDir, "member", name)),
				os.Rename(filepath.Join(other.DataDir, "member", name), filepath.Join(s.m.DataDir, "member", name))); err != nil {
				t.Fatal(err)
			}
		}
		refused(t, s.m, s.m.DataDir, "has data of Belay, and beside it data of an etcd")
		for _, name := range []string{"snap", "wal"} {
			if err := os.Rename(filepath.Join(s.m.DataDir, "member", name), filepath.Join(aside, name)); err != nil {
				t.Fatal(err)
			}
		}
		s.complete(t)
	})
}

func TestUnwritable(t *testing.T) {
	onlyBelay(t)
	at := func(t *testing.T, dir string) *cluster.Member {
		c := newCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1, DataDir: func(int) string { return dir }})
		return c.Members[0]
	}
	t.Run("a file in place of the directory", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "data")
		if err := os.WriteFile(path, []byte("a file"), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, at(t, path), path)
	})
	t.Run("a file in place of its parent", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "parent")
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, at(t, filepath.Join(path, "data")), filepath.Join(path, "data"))
	})
	t.Run("an immutable directory", func(t *testing.T) {
		dir := t.TempDir()
		if out, err := exec.Command("chattr", "+i", dir).CombinedOutput(); err != nil {
			t.Skipf("chattr +i: %v %s", err, out)
		}
		defer func() {
			if out, err := exec.Command("chattr", "-i", dir).CombinedOutput(); err != nil {
				t.Errorf("chattr -i: %v %s", err, out)
			}
		}()
		refused(t, at(t, dir), dir)
	})
	t.Run("a read-only mount", func(t *testing.T) {
		dir := mountTmpfs(t, "size=1m,ro")
		refused(t, at(t, filepath.Join(dir, "data")), filepath.Join(dir, "data"))
	})
}

// mountTmpfs mounts a small file system for the time of a test; where that is
// not permitted, the test is skipped.
func mountTmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	return dir
}

// TestDiskFull writes until the disk is full. The server may refuse writes (NOSPACE) or stop with a
// message that names its directory; with more room it must have everything that it acknowledged.
func TestDiskFull(t *testing.T) {
	onlyBelay(t)
	dir := mountTmpfs(t, "size=400m")
	c := newCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1, DataDir: func(int) string { return filepath.Join(dir, "data") }})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	s := &served{m: c.Members[0], keys: make(map[string]string)}
	conn, err := s.m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	kv := pb.NewKVClient(conn)
	from := logSize(s.m)
	noise := make([]byte, 512<<10) // not to be compressed away
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	var refusal error
	for n := 0; refusal == nil; n++ {
		if n > 2000 {
			t.Fatalf("%d MB were acknowledged on a disk of 400 MB", n/2)
		}
		key, value := fmt.Sprintf("k/%06d", n), fmt.Sprint(n, ":", string(noise[n:]))
		put, cancel := context.WithTimeout(ctx, 15*time.Second)
		_, refusal = kv.Put(put, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
		cancel()
		if refusal == nil {
			s.keys[key] = value
		}
	}
	t.Logf("%d writes of 512 KB were acknowledged; then: %v", len(s.keys), refusal)
	patience := 3 * time.Second
	if status.Code(refusal) != codes.ResourceExhausted { // it is about to end, then
		patience = 30 * time.Second
	}
	select {
	case <-s.m.Exited():
		exits(t, s.m, from, dir)
	case <-time.After(patience):
		if code := status.Code(refusal); code != codes.ResourceExhausted {
			t.Errorf("the server lives and refused a write with %v; ResourceExhausted is wanted", code)
		}
		if err := s.read(ctx); err != nil {
			t.Errorf("reads on a full disk: %v", err)
		}
		s.m.Kill()
	}
	if out, err := exec.Command("mount", "-o", "remount,size=1g", dir).CombinedOutput(); err != nil {
		t.Fatalf("remount: %v %s", err, out)
	}
	s.complete(t)
}
