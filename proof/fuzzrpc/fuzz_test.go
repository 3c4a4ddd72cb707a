package fuzzrpc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/check"
	"github.com/belaydb/belay/proof/cluster"
)

func TestMain(m *testing.M) { check.Main(m) }

const (
	workers = 6
	round   = 20 * time.Second // at most

	// memoryBytes bounds what a member may hold resident: with maxAnswerBytes, the bounds of
	// operations.md come to less, whatever is asked.
	memoryBytes    = 1500 << 20
	maxAnswerBytes = 32 << 20

	// settle is how long after the last call the members may take to be at rest, on
	// a machine without CPU.
	settle = 90 * time.Second
)

// rawCodec passes bytes on as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(b []byte, v any) error { *v.(*[]byte) = bytes.Clone(b); return nil }
func (rawCodec) Name() string                    { return "proto" }

// A sent message is kept for the report of what went before a failure.
type sent struct {
	at   time.Time
	what string
	body []byte
}

// member is one of the cluster, as the test speaks to it.
type member struct {
	*cluster.Member
	conn       *grpc.ClientConn
	goroutines float64 // at rest, before anything was sent
}

// fuzz is one run.
type fuzz struct {
	t       *testing.T
	seed    uint64
	members []*member
	methods []method
	known   known
	canary  history
	http    http.Client

	users  bool // authentication is on in this round
	tokens map[string]string

	mu    sync.Mutex
	calls map[string]int // by method
	texts map[string]int // by code and text, numbers left out
	last  [workers][]sent
}

// TestFuzzRPC is the whole of it; see doc.go.
func TestFuzzRPC(t *testing.T) {
	if testing.Short() {
		t.Skip("three real members, for 10 s")
	}
	length := setting(t, "BELAY_FUZZ_TIME", 10*time.Second, time.ParseDuration)
	f := &fuzz{
		t: t, methods: methods(), calls: make(map[string]int), texts: make(map[string]int),
		seed: setting(t, "BELAY_FUZZ_SEED", rand.Uint64(), func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }),
	}
	t.Logf("BELAY_FUZZ_SEED=%d BELAY_FUZZ_TIME=%v: %d methods", f.seed, length, len(f.methods))
	c, err := cluster.New(cluster.Config{
		Kind: cluster.Belay, Binary: check.Belay(t), Size: 3, Dir: t.TempDir(),
		Args: []string{"--bcrypt-cost=4", "--quota-backend-bytes=4294967296", fmt.Sprintf("--max-answer-bytes=%d", maxAnswerBytes)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			f.report()
			t.Log(c.Tails(30))
		}
		c.Close()
	})
	ctx, cancel := context.WithTimeout(t.Context(), length+10*time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members {
		conn, err := m.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		f.members = append(f.members, &member{Member: m, conn: conn})
		_ = cluster.ResetPeak(m.PID())
	}
	for _, m := range f.members {
		st, err := pb.NewMaintenanceClient(m.conn).Status(ctx, &pb.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		f.known.members = append(f.known.members, st.Header.MemberId)
		text, err := f.metrics(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		m.goroutines = sum(text, "go_goroutines")
	}

	end := time.Now().Add(length)
	for n := 0; time.Now().Before(end) && !t.Failed(); n++ {
		f.users = n%2 == 1
		f.round(ctx, uint64(n), min(round, length/2))
	}
	if t.Failed() {
		return
	}
	f.same(ctx, "at the end")
	for _, m := range f.members { // what was stored is read again, and the log applied
		stop, cancel := context.WithTimeout(ctx, time.Minute)
		err := m.Stop(stop)
		cancel()
		if err != nil {
			t.Error(err)
		}
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	f.same(ctx, "after a restart")
	f.quietLogs()
	total := 0
	for _, m := range f.methods {
		total += f.calls[m.name]
		if f.calls[m.name] == 0 {
			t.Errorf("%s was never called", m.name)
		}
	}
	t.Logf("%d calls, %d acknowledged writes of the canary", total, len(f.canary.acked))
	for _, text := range slices.Sorted(maps.Keys(f.texts)) {
		t.Logf("%7d %s", f.texts[text], text)
	}
}

func setting[T any](t *testing.T, name string, otherwise T, parse func(string) (T, error)) T {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	v, err := parse(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// round lets all workers send for a while, and looks at the members after it.
func (f *fuzz) round(ctx context.Context, n uint64, length time.Duration) {
	f.tokens = nil
	if f.users {
		f.enable(ctx)
	}
	// The canary is written and watched by itself, by connections that nobody else uses.
	life, stop := context.WithCancel(ctx)
	writing, stopWriting := context.WithCancel(ctx)
	var own, writer sync.WaitGroup
	own.Go(func() { f.canary.watch(life, f) })
	writer.Go(func() { f.canary.write(writing, f) })

	var wg sync.WaitGroup
	sending, cancel := context.WithTimeout(ctx, length)
	for i := range workers {
		g := &generator{rand.New(rand.NewPCG(f.seed, n<<8|uint64(i))), &f.known}
		wg.Go(func() {
			for sending.Err() == nil {
				f.call(ctx, g, i)
			}
		})
	}
	wg.Wait()
	cancel()
	stopWriting()
	writer.Wait()
	f.canary.finish(ctx, f)
	stop()
	own.Wait()
	f.canary.check(f.t)
	f.alive()
	if f.t.Failed() {
		return
	}
	f.clean(ctx)
	f.rest(ctx)
	f.same(ctx, fmt.Sprint("round ", n))
	for _, m := range f.members {
		if u, err := m.Usage(); err == nil {
			f.t.Logf("%s: %d MiB, %d at its peak, CPU %v", m.Name, u.RSSBytes>>20, u.PeakRSSBytes>>20, u.CPU.Round(time.Second))
		}
	}
}

func (f *fuzz) alive() {
	for _, m := range f.members {
		select {
		case <-m.Exited():
			f.t.Errorf("%s ended: %v", m.Name, m.ExitErr())
		default:
		}
		if u, err := m.Usage(); err == nil && u.PeakRSSBytes > memoryBytes {
			f.t.Errorf("%s had %d MiB resident at its peak; the bound is %d", m.Name, u.PeakRSSBytes>>20, memoryBytes>>20)
		}
	}
	f.quietLogs()
}

// inside matches internals of the program, which no answer and no log line may contain.
var inside = regexp.MustCompile(`(?i)runtime error|goroutine \d|\bpanic|nil pointer|invalid memory|index out of range|slice bounds|interface conversion|\.go:\d+|%!|reflect\.|unsafe pointer|0xc[0-9a-f]{9}`)

// grave matches log lines of a member that ended, or nearly.
var grave = regexp.MustCompile(`^panic|^goroutine \d|^fatal error|runtime error|"level":"(panic|fatal|dpanic)"|recovered from`)

func (f *fuzz) quietLogs() {
	for _, m := range f.members {
		file, err := os.Open(m.LogPath)
		if err != nil {
			f.t.Error(err)
			continue
		}
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if grave.Match(lines.Bytes()) {
				f.t.Errorf("the log of %s: %.2000s", m.Name, lines.Bytes())
				break
			}
		}
		if err := lines.Err(); err != nil {
			f.t.Errorf("the log of %s: %v", m.Name, err)
		}
		file.Close()
	}
}

// call makes one call of some kind.
func (f *fuzz) call(ctx context.Context, g *generator, worker int) {
	m := f.methods[g.IntN(len(f.methods))]
	for !strings.Contains(m.name, ".KV/") && g.chance(30) {
		m = f.methods[g.IntN(len(f.methods))] // what most depends on is called more often
	}
	to := f.members[worker%len(f.members)]
	who, token := g.identity(f)
	privileged := !f.users || who == keeper
	limit := time.Duration(pick(g, 50, 200, 1000, 3000)) * time.Millisecond
	if m.desc.IsStreamingClient() || m.desc.IsStreamingServer() || waits(m) {
		limit = time.Duration(pick(g, 20, 100, 300)) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if m.path != "" && g.chance(25) {
		body := g.json(m, privileged)
		if body == nil {
			return
		}
		f.note(worker, fmt.Sprintf("JSON %s to %s as %s", m.path, to.Name, who), body, m)
		f.gateway(ctx, to, m, token, body, g)
		return
	}
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
	}
	if g.chance(10) {
		ctx = metadata.AppendToOutgoingContext(ctx, pick(g, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataClientAPIVersionKey, "x-forwarded-for", "belay-certified", "odd-bin"),
			pick(g, "true", "", "false", strings.Repeat("h", 5000), "%s"))
	}
	options := []grpc.CallOption{grpc.ForceCodec(rawCodec{})}
	if g.chance(10) {
		options = append(options, grpc.UseCompressor(gzip.Name))
	}
	var bodies [][]byte
	for range pick(g, 1, 1, 2, 4) {
		b := g.wire(m, privileged)
		if b == nil {
			return
		}
		bodies = append(bodies, b)
		if !m.desc.IsStreamingClient() {
			break
		}
	}
	for _, b := range bodies {
		f.note(worker, fmt.Sprintf("%s to %s as %s", m.name, to.Name, who), b, m)
	}
	var err error
	if m.desc.IsStreamingClient() || m.desc.IsStreamingServer() {
		err = f.stream(ctx, to, m, g, bodies, options)
	} else {
		var answer []byte
		err = to.conn.Invoke(ctx, m.name, &bodies[0], &answer, options...)
		f.answer(m, answer, err)
	}
	f.judge(m, err)
}

// waits reports whether a unary method waits for others as it should.
func waits(m method) bool {
	return m.desc.Name() == "Campaign" || m.desc.Name() == "Lock"
}

func (g *generator) identity(f *fuzz) (who, token string) {
	if !f.users {
		if g.chance(5) {
			return "nobody with a token", "made.1"
		}
		return "nobody", ""
	}
	switch g.IntN(8) {
	case 0:
		return "nobody", ""
	case 1:
		return "nobody with a token", pick(g, "made.1", ".", "a.999999999999", "x.-1", strings.Repeat("t", 3000), "%s", "..")
	case 2, 3, 4:
		return alice, f.tokens[alice]
	}
	return keeper, f.tokens[keeper]
}

func (f *fuzz) stream(ctx context.Context, to *member, m method, g *generator, bodies [][]byte, options []grpc.CallOption) error {
	s, err := to.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, m.name, options...)
	if err != nil {
		return err
	}
	for _, b := range bodies {
		if err := s.SendMsg(&b); err != nil {
			break // what it is, RecvMsg tells
		}
	}
	if g.chance(50) {
		_ = s.CloseSend()
	}
	for range g.IntN(6) {
		var answer []byte
		if err := s.RecvMsg(&answer); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		f.answer(m, answer, nil)
	}
	return nil
}

// answer looks whether an answer is the message that it should be.
func (f *fuzz) answer(m method, answer []byte, err error) {
	if err != nil {
		return
	}
	resp := newMessage(m.desc.Output())
	if err := proto.Unmarshal(answer, resp); err != nil {
		f.t.Errorf("%s: the answer is no %T: %v", m.name, resp, err)
		return
	}
	f.known.learn(resp)
}

var numbers = regexp.MustCompile(`[0-9a-f]{8,}|\d+`)

// judge looks at how a call ended.
func (f *fuzz) judge(m method, err error) {
	st := status.Convert(err)
	text := st.Message()
	if st.Code() > codes.Unauthenticated {
		f.t.Errorf("%s: code %d, %q", m.name, st.Code(), text)
	}
	if inside.MatchString(text) {
		f.t.Errorf("%s: %v: %q", m.name, st.Code(), text)
	}
	f.count(m, st.Code().String(), text)
}

func (f *fuzz) count(m method, code, text string) {
	if len(text) > 100 {
		text = text[:100]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[m.name]++
	f.texts[fmt.Sprintf("%s %q", code, numbers.ReplaceAllString(text, "N"))]++
}

// gateway sends a body of JSON.
func (f *fuzz) gateway(ctx context.Context, to *member, m method, token string, body []byte, g *generator) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to.ClientURL+m.path, bytes.NewReader(body))
	if err != nil {
		f.t.Error(err)
		return
	}
	r.Header.Set("Content-Type", pick(g, "application/json", "application/json", "application/json; charset=utf-16", "application/octet-stream", "application/x-protobuf"))
	if token != "" {
		r.Header.Set("Authorization", token)
	}
	resp, err := f.http.Do(r)
	if err != nil {
		// EOF: the server ended a connection whose last body it had not read to its end, just as it
		// was used again.
		if ctx.Err() == nil && !strings.Contains(err.Error(), "connection") && !errors.Is(err, io.EOF) {
			f.t.Errorf("%s: %v", m.path, err)
		}
		f.count(m, "JSON", "no answer in time")
		return
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case resp.StatusCode == http.StatusOK:
		f.count(m, "JSON", "OK")
		return
	case err != nil:
		return // cut off by the deadline
	case inside.Match(text):
		f.t.Errorf("%s: %s: %.1000q of %.1000q", m.path, resp.Status, text, body)
	case !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")):
		f.t.Errorf("%s: %s: an error that is not JSON: %.1000q", m.path, resp.Status, text)
	}
	f.count(m, fmt.Sprint("JSON ", resp.StatusCode), string(text))
}

func (f *fuzz) note(worker int, what string, body []byte, m method) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last[worker] = append(f.last[worker], sent{time.Now(), what, body})
	if n := len(f.last[worker]); n > 40 {
		f.last[worker] = slices.Clone(f.last[worker][n-20:])
	}
}

// report prints what was sent last.
func (f *fuzz) report() {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []sent
	for _, l := range f.last {
		all = append(all, l...)
	}
	slices.SortFunc(all, func(a, b sent) int { return a.at.Compare(b.at) })
	for _, s := range all {
		f.t.Logf("%s %s %d bytes: %.300q", s.at.Format("15:04:05.000"), s.what, len(s.body), s.body)
	}
}

// as makes ctx the keeper's, when there are users.
func (f *fuzz) as(ctx context.Context) context.Context {
	if token := f.tokens[keeper]; token != "" {
		return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
	}
	return ctx
}

// insist repeats what an overloaded or leaderless member may refuse, until it is
// done. errors that want say that it was done already.
func (f *fuzz) insist(ctx context.Context, what string, do func(ctx context.Context) error, done ...error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for {
		call, stop := context.WithTimeout(ctx, 10*time.Second)
		err := do(call)
		stop()
		if err == nil || slices.ContainsFunc(done, func(d error) bool { return rpctypes.ErrorDesc(err) == rpctypes.ErrorDesc(d) }) {
			return
		}
		switch rpctypes.ErrorDesc(err) {
		case rpctypes.ErrorDesc(rpctypes.ErrGRPCNoSpace), rpctypes.ErrorDesc(rpctypes.ErrGRPCCorrupt):
			f.disarm(ctx) // somebody has raised it
		}
		select {
		case <-ctx.Done():
			f.t.Errorf("%s: %v", what, err)
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// disarm ends all alarms.
func (f *fuzz) disarm(ctx context.Context) {
	admin := pb.NewMaintenanceClient(f.members[0].conn)
	resp, err := admin.Alarm(f.as(ctx), &pb.AlarmRequest{Action: pb.AlarmRequest_GET})
	for _, a := range resp.GetAlarms() {
		if err == nil {
			_, err = admin.Alarm(f.as(ctx), &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: a.MemberID, Alarm: a.Alarm})
		}
	}
	_ = err // the caller tries again
}

// enable makes the users of a round and turns authentication on.
func (f *fuzz) enable(ctx context.Context) {
	admin := pb.NewAuthClient(f.members[0].conn)
	for _, name := range []string{"root", keeper, alice} {
		role := "root"
		if name == alice {
			role = "writer"
		}
		f.insist(ctx, "add a user", func(ctx context.Context) error {
			_, err := admin.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Password: name})
			return err
		}, rpctypes.ErrGRPCUserAlreadyExist)
		f.insist(ctx, "add a role", func(ctx context.Context) error {
			_, err := admin.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: role})
			return err
		}, rpctypes.ErrGRPCRoleAlreadyExist)
		f.insist(ctx, "grant a role", func(ctx context.Context) error {
			_, err := admin.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: role})
			return err
		})
	}
	f.insist(ctx, "grant a permission", func(ctx context.Context) error {
		_, err := admin.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "writer", Perm: &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte("k/"), RangeEnd: []byte("k0")}})
		return err
	})
	f.insist(ctx, "turn authentication on", func(ctx context.Context) error {
		_, err := admin.AuthEnable(ctx, &pb.AuthEnableRequest{})
		return err
	})
	f.tokens = make(map[string]string)
	for _, name := range []string{keeper, alice} {
		f.insist(ctx, "log in", func(ctx context.Context) error {
			resp, err := admin.Authenticate(ctx, &pb.AuthenticateRequest{Name: name, Password: name})
			f.tokens[name] = resp.GetToken()
			return err
		})
	}
}

// clean takes back what a round has left, so that the next begins with little, and
// turns authentication off.
func (f *fuzz) clean(ctx context.Context) {
	conn := f.members[0].conn
	f.disarm(ctx)
	kv, leases, admin, members := pb.NewKVClient(conn), pb.NewLeaseClient(conn), pb.NewAuthClient(conn), pb.NewClusterClient(conn)
	if f.users {
		f.insist(ctx, "turn authentication off", func(ctx context.Context) error {
			_, err := admin.AuthDisable(f.as(ctx), &pb.AuthDisableRequest{})
			return err
		})
		f.tokens = nil
	}
	for _, r := range []*pb.DeleteRangeRequest{{Key: []byte{0}, RangeEnd: []byte(canary)}, {Key: []byte(canary + "\x00"), RangeEnd: []byte{0}}} {
		f.insist(ctx, "delete", func(ctx context.Context) error { _, err := kv.DeleteRange(ctx, r); return err })
	}
	f.insist(ctx, "revoke leases", func(ctx context.Context) error {
		resp, err := leases.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		for _, l := range resp.GetLeases() {
			if _, e := leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: l.ID}); e != nil && rpctypes.ErrorDesc(e) != rpctypes.ErrorDesc(rpctypes.ErrGRPCLeaseNotFound) {
				err = errors.Join(err, e)
			}
		}
		return err
	})
	f.insist(ctx, "remove users", func(ctx context.Context) error {
		resp, err := admin.UserList(ctx, &pb.AuthUserListRequest{})
		for _, name := range resp.GetUsers() {
			_, e := admin.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: name})
			err = errors.Join(err, e)
		}
		return err
	})
	f.insist(ctx, "remove roles", func(ctx context.Context) error {
		resp, err := admin.RoleList(ctx, &pb.AuthRoleListRequest{})
		for _, name := range resp.GetRoles() {
			_, e := admin.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: name})
			err = errors.Join(err, e)
		}
		return err
	})
	f.insist(ctx, "remove learners", func(ctx context.Context) error {
		resp, err := members.MemberList(ctx, &pb.MemberListRequest{})
		for _, m := range resp.GetMembers() {
			if !slices.Contains(f.known.members, m.ID) {
				_, e := members.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: m.ID})
				err = errors.Join(err, e)
			}
		}
		return err
	})
	f.known.learners, f.known.leases = nil, nil
	f.insist(ctx, "end a downgrade", func(ctx context.Context) error {
		_, err := pb.NewMaintenanceClient(conn).Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL})
		return err
	}, rpctypes.ErrGRPCNoInflightDowngrade, errors.New("etcdserver: no inflight downgrade job"))
	f.insist(ctx, "compact", func(ctx context.Context) error {
		_, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: f.canary.newest()})
		return err
	}, rpctypes.ErrGRPCCompacted)
}

func (f *fuzz) metrics(ctx context.Context, m *member) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, m.ClientURL+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := f.http.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// sum adds the values of all series of a metric.
func sum(text, name string) (total float64) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == '{' || rest[0] == ' ') {
			fields := strings.Fields(rest)
			v, _ := strconv.ParseFloat(fields[len(fields)-1], 64)
			total += v
		}
	}
	return total
}

// rest waits until no call is at work any more and the goroutines have gone.
func (f *fuzz) rest(ctx context.Context) {
	f.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for _, m := range f.members {
		var atWork, goroutines float64
		for {
			call, stop := context.WithTimeout(ctx, 20*time.Second)
			text, err := f.metrics(call, m)
			stop()
			if err == nil {
				atWork = sum(text, "grpc_server_started_total") - sum(text, "grpc_server_handled_total")
				if goroutines = sum(text, "go_goroutines"); atWork == 0 && goroutines < m.goroutines+200 {
					break
				}
			}
			select {
			case <-ctx.Done():
				f.t.Errorf("%s is not at rest: %v calls are at work, %v goroutines, %v at first (%v)", m.Name, atWork, goroutines, m.goroutines, err)
				f.dump(m)
				return
			case <-time.After(50 * time.Millisecond):
				continue
			}
		}
	}
}

// dump ends a member so that it prints its goroutines.
func (f *fuzz) dump(m *member) {
	from := int64(0)
	if st, err := os.Stat(m.LogPath); err == nil {
		from = st.Size()
	}
	_ = m.Signal(syscall.SIGQUIT)
	select {
	case <-m.Exited():
	case <-time.After(settle):
	}
	if text, err := os.ReadFile(m.LogPath); err == nil {
		f.t.Logf("%s: %s", m.Name, text[min(int(from), len(text)):])
	}
}

// same waits until the members' contents are equal, and fails if they stay different.
func (f *fuzz) same(ctx context.Context, when string) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for {
		var told, hashes []string
		for _, m := range f.members {
			call, stop := context.WithTimeout(ctx, 20*time.Second)
			// By its number: for revision 0 the hash of a compaction of revision 0 may answer.
			at, err := pb.NewKVClient(m.conn).Range(call, &pb.RangeRequest{Key: []byte(canary)}, grpc.WaitForReady(true))
			var r *pb.HashKVResponse
			if err == nil {
				r, err = pb.NewMaintenanceClient(m.conn).HashKV(call, &pb.HashKVRequest{Revision: at.Header.Revision})
			}
			stop()
			text := fmt.Sprintf("revision %d, compacted %d, hash %08x, %v", r.GetHashRevision(), r.GetCompactRevision(), r.GetHash(), err)
			if err == nil {
				hashes = append(hashes, text)
			}
			told = append(told, m.Name+": "+text)
		}
		if len(hashes) == len(f.members) && len(slices.Compact(hashes)) == 1 {
			f.t.Logf("%s: %s", when, hashes[0])
			return
		}
		select {
		case <-ctx.Done():
			f.t.Errorf("%s the members differ:\n%s", when, strings.Join(told, "\n"))
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}
