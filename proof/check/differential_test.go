package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
)

// differentialArgs make the limits small, so that crossing them is cheap.
var differentialArgs = []string{"--max-request-bytes", "65536", "--max-txn-ops", "8"}

// TestDifferential sends one stream of requests to Belay and to etcd and requires equal answers:
// every field and every error's code and text, except the ids that each server chooses itself,
// raft's term and index, and sizes.
func TestDifferential(t *testing.T) {
	requests := envInt(t, "BELAY_CHECK_REQUESTS", 3000)
	if testing.Short() {
		requests = min(requests, 500)
	}
	seed := seedOf(t, "TestDifferential")
	start := time.Now()
	var d *differential
	for ; ; seed++ {
		var err error
		if d, err = newDifferential(t, checkKind(t), seed); err != nil {
			t.Fatal(err)
		}
		if err = d.run(requests); err == nil {
			break
		}
		if !d.etcdFell(t) {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	t.Logf("%d requests, %d answers compared, %d errors among them, %d watch events, %d hashes, last revision %d, %v",
		requests, d.compared, d.refused, d.watched, d.hashes, d.gen.rev, time.Since(start).Round(time.Millisecond))
	if d.refused == 0 || d.watched == 0 || d.hashes == 0 {
		t.Error("the stream did not reach errors, watch events and hashes: it proves too little")
	}
}

// TestDifferentialCanFail compares etcd with an etcd whose requests or answers
// are tampered with, and wants each kind of tampering to be found.
func TestDifferentialCanFail(t *testing.T) {
	if testing.Short() {
		t.Skip("validates the harness, not Belay")
	}
	for name, tamper := range map[string]tampering{
		"a request is lost":         {at: 60, drop: true},
		"a value is changed":        {at: 60, value: true},
		"a revision is off by one":  {at: 60, revision: true},
		"an error's text differs":   {at: 60, text: true},
		"a watch event is lost":     {at: 60, event: true},
		"a watch event comes twice": {at: 60, doubled: true},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := newDifferential(t, cluster.Etcd, 7)
			if err != nil {
				t.Fatal(err)
			}
			d.tamper = tamper
			err = d.run(400)
			var diff *difference
			if !errors.As(err, &diff) {
				t.Fatalf("the difference was not found: %v", err)
			}
			t.Logf("found: %s", strings.SplitN(err.Error(), "\n", 2)[0])
		})
	}
}

// tampering makes the second side wrong, once, at or after request number at.
type tampering struct {
	at                                          int
	drop, value, revision, text, event, doubled bool
}

// differential drives two sides through one stream of steps.
type differential struct {
	sides  [2]*side
	gen    *generator
	tamper tampering

	compared, refused, watched, hashes int

	trace func(format string, args ...any) // nil: quiet
}

// A difference is the first answer that is not the same on both sides.
type difference struct {
	number  int
	request string
	answers [2]string
	names   [2]string
}

func (d *difference) Error() string {
	a, b := strings.Split(d.answers[0], "\n"), strings.Split(d.answers[1], "\n")
	if same := commonPrefix(a, b); same > 12 {
		// Long answers: from a little before the first line that is not the same.
		from := same - 8
		return fmt.Sprintf("request %d is answered differently from line %d on\n%s\n%s answers: ...\n%s\n%s answers: ...\n%s",
			d.number, same+1, d.request,
			d.names[0], strings.Join(a[from:min(len(a), same+12)], "\n"),
			d.names[1], strings.Join(b[from:min(len(b), same+12)], "\n"))
	}
	return fmt.Sprintf("request %d is answered differently\n%s\n%s answers: %s\n%s answers: %s",
		d.number, d.request, d.names[0], abridge(d.answers[0]), d.names[1], abridge(d.answers[1]))
}

func commonPrefix(a, b []string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

func newDifferential(t *testing.T, second cluster.Kind, seed uint64) (*differential, error) {
	d := &differential{}
	for i, kind := range []cluster.Kind{cluster.Etcd, second} {
		c := startCluster(t, cluster.Config{Kind: kind, Size: 1, Args: differentialArgs})
		s, err := newSide(c.Members[0])
		if err != nil {
			return nil, err
		}
		t.Cleanup(s.close)
		d.sides[i] = s
	}
	d.gen = newGenerator(rand.New(rand.NewPCG(seed, 1)))
	if os.Getenv("BELAY_CHECK_TRACE") != "" {
		d.trace = t.Logf
	}
	return d, nil
}

// etcdFell reports whether etcd ended by itself, which its answers cannot be compared with: 3.7.3
// does so when it reads, at an older revision, a key whose entry in a transaction of many
// operations a compaction took away ("range failed to find revision pair"; seed 331250138).
func (d *differential) etcdFell(t *testing.T) bool {
	select {
	case <-d.sides[0].member.Exited():
	case <-time.After(2 * time.Second):
		return false
	}
	for line := range strings.Lines(d.sides[0].member.LogTail(200)) {
		if strings.Contains(line, `"level":"fatal"`) || strings.HasPrefix(line, "panic:") {
			t.Logf("etcd ended by itself, so another seed follows: %s", abridge(line))
			return true
		}
	}
	return false
}

// sideNames tell the two apart in a report: the first is always etcd.
func (d *differential) names() [2]string {
	return [2]string{"etcd", "the other (" + d.sides[1].member.Endpoint() + ")"}
}

func (d *differential) run(requests int) error {
	for n := 0; n < requests; {
		for _, st := range d.gen.next() {
			if err := d.step(n, st); err != nil {
				return err
			}
			n++
		}
		if n%50 == 0 || d.gen.wantSync {
			if err := d.sync(n); err != nil {
				return err
			}
		}
	}
	for _, st := range d.gen.finish() {
		if err := d.step(requests, st); err != nil {
			return err
		}
	}
	return d.sync(requests)
}

// step sends one request to both sides and compares the answers.
func (d *differential) step(n int, st step) error {
	if st.sync {
		if err := d.sync(n); err != nil {
			return err
		}
	}
	var msgs [2]proto.Message
	var errs [2]error
	for i, s := range d.sides {
		do := st.do
		if i == 1 && n >= d.tamper.at && d.tamper.at > 0 {
			if d.tamper.drop && st.name == "Put" && d.sideOK(msgs[0], errs[0]) {
				d.tamper.drop = false
				msgs[1], errs[1] = msgs[0], errs[0]
				continue
			}
			if put, ok := st.request.(*pb.PutRequest); ok && d.tamper.value && errs[0] == nil && !put.IgnoreValue {
				d.tamper.value = false
				put := proto.Clone(put).(*pb.PutRequest)
				put.Value = append(put.Value, 'x')
				do = func(ctx context.Context, s *side) (proto.Message, error) { return s.kv.Put(ctx, real(s, put)) }
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		msg, err := do(ctx, s)
		cancel()
		if err == nil && st.learn != nil {
			st.learn(s, msg) // before the translation: it may add symbols
		}
		if err == nil && msg != nil {
			msg = s.symbolic(msg)
		}
		msgs[i], errs[i] = msg, err
	}
	if d.tamper.at > 0 && n >= d.tamper.at {
		d.tamperAnswer(&msgs[1], &errs[1])
	}
	if st.adjust != nil && errs[0] == nil && errs[1] == nil {
		st.adjust(msgs[0], msgs[1])
	}
	d.compared++
	if d.trace != nil {
		d.trace("%d %s\n  => %s", n, st, strings.Join(strings.Fields(answer(msgs[0], errs[0])), " "))
	}
	if errs[0] != nil {
		d.refused++
	}
	if st.name == "HashKV" && errs[0] == nil {
		d.hashes++
	}
	if !sameError(errs[0], errs[1]) || (errs[0] == nil && !proto.Equal(msgs[0], msgs[1])) {
		return &difference{
			number: n, request: st.String(),
			answers: [2]string{answer(msgs[0], errs[0]), answer(msgs[1], errs[1])},
			names:   d.names(),
		}
	}
	if errs[0] == nil && msgs[0] != nil {
		d.gen.observe(st, msgs[0])
	}
	return nil
}

func (d *differential) sideOK(_ proto.Message, err error) bool { return err == nil }

func (d *differential) tamperAnswer(msg *proto.Message, err *error) {
	if h, ok := (*msg).(interface{ GetHeader() *pb.ResponseHeader }); ok && d.tamper.revision && *err == nil && h.GetHeader() != nil {
		d.tamper.revision = false
		h.GetHeader().Revision++
	}
	if d.tamper.text && *err != nil {
		d.tamper.text = false
		*err = status.Error(status.Code(*err), status.Convert(*err).Message()+".")
	}
	for _, w := range d.sides[1].streams {
		w.mu.Lock()
		for id, lines := range w.lines {
			if len(lines) == 0 {
				continue
			}
			if d.tamper.event {
				d.tamper.event = false
				w.lines[id] = lines[1:]
			} else if d.tamper.doubled {
				d.tamper.doubled = false
				w.lines[id] = append(lines, lines[len(lines)-1])
			}
		}
		w.mu.Unlock()
	}
}

func sameError(a, b error) bool {
	if (a == nil) != (b == nil) {
		return false
	}
	return a == nil || status.Code(a) == status.Code(b) && status.Convert(a).Message() == status.Convert(b).Message()
}

func answer(m proto.Message, err error) string {
	if err != nil {
		return fmt.Sprintf("error %v %q", status.Code(err), status.Convert(err).Message())
	}
	if m == nil {
		return "nothing"
	}
	return prototext.Format(m)
}

// abridge cuts a long text in the middle.
func abridge(s string) string {
	const most = 6000
	if len(s) <= most {
		return s
	}
	return s[:most/2] + fmt.Sprintf("\n... %d bytes left out ...\n", len(s)-most) + s[len(s)-most/2:]
}

// sync waits until every watch of both sides has got all events up to now and
// compares them. A manual progress request is the barrier: the server answers
// it once all watches of the stream are synced, after their events.
func (d *differential) sync(n int) error {
	d.gen.wantSync = false
	for id, active := range d.gen.streams {
		for _, s := range d.sides {
			w := s.streams[id]
			if w == nil || len(active.watches) == 0 || active.future > d.gen.rev {
				continue
			}
			if err := w.barrier(d.gen.rev); err != nil {
				return &difference{number: n, request: fmt.Sprintf("progress request on watch stream %d", id),
					answers: [2]string{"", err.Error()}, names: d.names()}
			}
		}
		a, b := d.sides[0].streams[id], d.sides[1].streams[id]
		if a == nil || b == nil {
			continue
		}
		if err := d.compareStreams(n, id, a, b); err != nil {
			return err
		}
	}
	return nil
}

// barrier asks for progress until the answer reaches rev.
func (w *watchStream) barrier(rev int64) error {
	w.mu.Lock()
	w.progress = nil
	w.mu.Unlock()
	reached := func() bool {
		return len(w.progress) > 0 && w.progress[len(w.progress)-1].Header.Revision >= rev
	}
	var err error
	for range 100 { // 10 s; a request that comes before the watches are synced may go unanswered
		if err := w.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
			return fmt.Errorf("progress request: %w", err)
		}
		if err = w.wait("progress answer at revision "+fmt.Sprint(rev), 100*time.Millisecond, reached); err == nil {
			return nil
		}
		if w.streamErr() != nil {
			return err
		}
	}
	return err
}

func (w *watchStream) streamErr() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (d *differential) compareStreams(n, id int, a, b *watchStream) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		diff := firstDifference(a, b)
		if diff == nil {
			break
		}
		if time.Now().After(deadline) || diff.answers[0] != "" && diff.answers[1] != "" {
			diff.number, diff.names = n, d.names()
			diff.request = fmt.Sprintf("(at the comparison of watch stream %d) %s", id, diff.request)
			return diff
		}
		// Both sides' streams feed their own channels; either may be the late one.
		time.Sleep(5 * time.Millisecond)
	}
	for _, w := range []*watchStream{a, b} {
		w.mu.Lock()
		faults := w.faults
		w.mu.Unlock()
		if len(faults) > 0 {
			return &difference{number: n, request: fmt.Sprintf("watch stream %d", id), names: d.names(),
				answers: [2]string{"", strings.Join(faults, "\n")}}
		}
	}
	a.mu.Lock()
	b.mu.Lock()
	for id, lines := range a.lines {
		n := min(len(lines), len(b.lines[id])) // one side may have got another one just now
		d.watched += n
		a.lines[id], b.lines[id] = lines[n:], b.lines[id][n:]
	}
	b.mu.Unlock()
	a.mu.Unlock()
	return nil
}

// firstDifference compares what the watches of two streams have got. An empty
// answer means that this side has (as yet) nothing where the other has a line.
func firstDifference(a, b *watchStream) *difference {
	a.mu.Lock()
	defer a.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ids := range []map[int64][]string{a.lines, b.lines} {
		for id := range ids {
			la, lb := a.lines[id], b.lines[id]
			for i := range max(len(la), len(lb)) {
				var xa, xb string
				if i < len(la) {
					xa = la[i]
				}
				if i < len(lb) {
					xb = lb[i]
				}
				if xa != xb {
					return &difference{request: fmt.Sprintf("watch %d, event %d since the last comparison", id, i), answers: [2]string{xa, xb}}
				}
			}
		}
	}
	return nil
}

func envInt(t testing.TB, name string, def int) int {
	text := os.Getenv(name)
	if text == "" {
		return def
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: a positive number is wanted", name, text)
	}
	return n
}

// seedOf returns the seed of a random check and prints how to repeat it.
func seedOf(t testing.TB, test string) uint64 {
	seed := uint64(time.Now().UnixNano()) % 1e9
	if text := os.Getenv("BELAY_CHECK_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("BELAY_CHECK_SEED=%q: a number is wanted", text)
		}
		seed = n
	}
	t.Logf("repeat with: BELAY_CHECK_SEED=%d go test ./proof/check -run '^%s$'", seed, test)
	return seed
}

// checkKind returns which kind of server is under test.
func checkKind(t testing.TB) cluster.Kind {
	switch k := cluster.Kind(os.Getenv("BELAY_CHECK_KIND")); k {
	case "", cluster.Belay:
		return cluster.Belay
	case cluster.Etcd:
		return cluster.Etcd
	default:
		t.Fatalf("BELAY_CHECK_KIND=%q: %q or %q is wanted", k, cluster.Belay, cluster.Etcd)
		return ""
	}
}

// binaryOf returns the program of a kind, built on first use.
func binaryOf(t testing.TB, kind cluster.Kind) string {
	if kind == cluster.Etcd {
		return EtcdTools(t).Etcd
	}
	return Belay(t)
}

// startCluster starts members that end with the test. When the test fails, the
// ends of their logs are printed.
func startCluster(t testing.TB, cfg cluster.Config) *cluster.Cluster {
	t.Helper()
	c := newCluster(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// newCluster is startCluster without the start.
func newCluster(t testing.TB, cfg cluster.Config) *cluster.Cluster {
	t.Helper()
	if cfg.Binary == "" {
		cfg.Binary = binaryOf(t, cfg.Kind)
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	c, err := cluster.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		for _, m := range c.Members {
			noRaces(t, m.LogPath)
		}
		if t.Failed() {
			t.Log(c.Tails(15))
		}
	})
	return c
}

// noRaces looks for what the race detector has said of a member that was built with it: it says so in
// the member's log, and nowhere else, since a signal ends the member.
func noRaces(t testing.TB, log string) {
	text, err := os.ReadFile(log)
	if err != nil {
		return // it never ran
	}
	if _, report, found := bytes.Cut(text, []byte("WARNING: DATA RACE")); found {
		t.Errorf("%s has a data race:\n%.6000s", log, report)
	}
}
