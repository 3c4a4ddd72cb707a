package replica

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/peers"
)

// TestScenarios plays the files of testdata/loop: what the loop decides, as text. The members
// are whole ones, with logs on disks in memory. Nothing moves by itself: time stands still
// until `advance`, a message stays in the mail until `deliver` or `advance` brings it, one at
// a time and in a fixed order, and after each step everybody comes to rest. A member stands
// for election only when it is told to (`campaign`, or a transfer), as long as no scenario
// lets an election timeout pass without a leader.
//
//	cluster N [leader=ID]        N members; the leader is elected, and all is delivered. keep: the
//	                             log in memory is dropped as soon as it is flushed, each 50
//	                             entries; bound=MIB: Config.MaxUnsyncedBytes
//	campaign ID                  the member stands for election
//	ask-to-lead ID from=ID       the message of a leader that lost its quorum is in the mail
//	advance DURATION             that many ticks; after each, all mail is delivered
//	deliver [COUNT] [RULE] [quiet]  mail, and what answers to it, up to COUNT messages; quiet: untold
//	hold RULE, lose RULE, heal   mail that stays, mail that is lost, from now on; none any more
//	discard                      what is in the mail is lost
//	put ID KEY, read ID          a write, a linearizable read; the result is told when it is there
//	put-in-term ID KEY term=N    a write that only the leader of the term may ask for
//	transfer ID to=ID            a client moves leadership
//	handover ID                  a leader that stops looks for another
//	change ID KIND MEMBER        a member change: add, learner, promote, remove
//	join ID                      the member that was added starts
//	stall ID, release ID         its disk
//	fill ID COUNT                writes of 1 MiB, of which nothing is told but that they are refused
//	write ID COUNT               small ones, one after another
//	crash ID, restart ID         a crash loses all that is not synced
//	status                       of all members
//
// A RULE is any of from=ID to=ID type=MsgName. Heartbeats are delivered but not told of, unless
// a read waits for their answers.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, filepath.Join("testdata", "loop"), func(t *testing.T, path string) {
		synctest.Test(t, func(t *testing.T) {
			s := &scenario{t: t}
			defer func() { s.close() }()
			datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
				if td.Cmd == "cluster" {
					s.close()
					s = &scenario{t: t, release: map[uint64]func(){}}
				}
				return s.run(td)
			})
		})
	})
}

// scenario is what happens to one cluster.
type scenario struct {
	t *testing.T
	c *testCluster

	mu sync.Mutex
	// sent and told are what members did since all came to rest last, in no order.
	sent []*raftpb.Message
	told []event

	mail    []*raftpb.Message // in order
	held    []mailRule
	lost    []mailRule
	release map[uint64]func() // of stalled disks
	out     strings.Builder
	quiet   bool
}

// event is a line of what a member told.
type event struct {
	member uint64
	result bool // of a call, by a goroutine of its own; else by the log
	text   string
}

// order is that of members, what each did before the results of calls, and the log's lines as
// they came.
func (e event) order(f event) int {
	if e.member == f.member && e.result && f.result {
		return cmp.Compare(e.text, f.text)
	}
	number := func(e event) int {
		if e.result {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(e.member, f.member), cmp.Compare(number(e), number(f)))
}

// mailRule names some messages. Zero values are any.
type mailRule struct {
	from, to uint64
	typ      string
}

func (r mailRule) covers(m *raftpb.Message) bool {
	return (r.from == 0 || r.from == m.GetFrom()) && (r.to == 0 || r.to == m.GetTo()) && (r.typ == "" || r.typ == m.GetType().String())
}

func covered(rules []mailRule, m *raftpb.Message) bool {
	return slices.ContainsFunc(rules, func(r mailRule) bool { return r.covers(m) })
}

func (s *scenario) close() {
	if s.c == nil {
		return
	}
	for _, release := range s.release {
		release()
	}
	s.c.mail = func(*raftpb.Message) {}
	s.c.close()
}

func (s *scenario) run(td *datadriven.TestData) string {
	s.out.Reset()
	switch td.Cmd {
	case "cluster":
		s.cluster(td)
	case "campaign":
		s.member(td, 0).replica().inbox.request(loopFunc(func(l *loop) { _ = l.node.Campaign() }))
	case "ask-to-lead":
		m, from := s.member(td, 0), s.id(td, "from")
		s.send(&raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: new(from), To: new(m.id), Term: new(m.replica().Term()), Context: []byte(peers.ContextQuorum)})
	case "advance":
		s.advance(td)
	case "deliver":
		count := 1 << 20
		if s.quiet = td.HasArg("quiet"); !s.quiet && len(td.CmdArgs) > 0 && len(td.CmdArgs[0].Vals) == 0 {
			count = s.number(td, 0)
		}
		s.deliver(count, s.rule(td))
		s.quiet = false
	case "hold":
		s.held = append(s.held, s.rule(td))
	case "lose":
		s.lost = append(s.lost, s.rule(td))
	case "heal":
		s.held, s.lost = nil, nil
	case "discard":
		s.mail = nil
	case "put":
		s.put(s.member(td, 0), td.CmdArgs[1].Key)
	case "put-in-term":
		s.putInTerm(td)
	case "read":
		m := s.member(td, 0)
		s.begin(m, "read", func() error { return m.replica().ReadBarrier(context.Background()) })
	case "transfer":
		m, to := s.member(td, 0), s.id(td, "to")
		s.begin(m, fmt.Sprint("transfer to ", to), func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			return m.replica().TransferLeader(ctx, to)
		})
	case "handover":
		m := s.member(td, 0)
		s.begin(m, "hand-over", func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			_, err := m.replica().HandOver(ctx)
			return err
		})
	case "change":
		s.change(td)
	case "join":
		s.join(uint64(s.number(td, 0)))
	case "stall":
		m := s.member(td, 0)
		s.release[m.id] = m.stall()
	case "release":
		m := s.member(td, 0)
		s.release[m.id]()
		delete(s.release, m.id)
	case "fill":
		s.fill(td, 1<<20)
	case "write":
		s.fill(td, 10)
	case "crash":
		m := s.member(td, 0)
		delete(s.release, m.id)
		m.hardCrash()
	case "restart":
		s.member(td, 0).restart()
	case "status":
		s.rest()
		s.status()
	default:
		s.t.Fatalf("%s: no such command: %s", td.Pos, td.Cmd)
	}
	s.rest()
	return collapse(s.out.String())
}

// collapse tells lines that repeat themselves, up to four together, once.
func collapse(text string) string {
	lines := slices.Collect(strings.Lines(text))
	var out strings.Builder
	for at := 0; at < len(lines); {
		block, times := 1, 1
		for n := 1; n <= 4 && at+n <= len(lines); n++ {
			k := 1
			for at+(k+1)*n <= len(lines) && slices.Equal(lines[at:at+n], lines[at+k*n:at+(k+1)*n]) {
				k++
			}
			if k > 1 && n*k > block*times {
				block, times = n, k
			}
		}
		for _, line := range lines[at : at+block] {
			if times > 1 {
				line = fmt.Sprintf("%s (%d times)\n", strings.TrimSuffix(line, "\n"), times)
			}
			out.WriteString(line)
		}
		at += block * times
	}
	return out.String()
}

// number is a positional argument.
func (s *scenario) number(td *datadriven.TestData, i int) int {
	n, err := strconv.Atoi(td.CmdArgs[i].Key)
	if err != nil {
		s.t.Fatalf("%s: %v", td.Pos, err)
	}
	return n
}

func (s *scenario) id(td *datadriven.TestData, key string) (id uint64) {
	if td.HasArg(key) {
		td.ScanArgs(s.t, key, &id)
	}
	return id
}

func (s *scenario) member(td *datadriven.TestData, i int) *testMember {
	m := s.c.members[uint64(s.number(td, i))]
	if m == nil {
		s.t.Fatalf("%s: no such member", td.Pos)
	}
	return m
}

func (s *scenario) rule(td *datadriven.TestData) (r mailRule) {
	r.from, r.to = s.id(td, "from"), s.id(td, "to")
	if td.HasArg("type") {
		td.ScanArgs(s.t, "type", &r.typ)
	}
	return r
}

func (s *scenario) cluster(td *datadriven.TestData) {
	s.c = newTestCluster(s.t, s.number(td, 0), keepLog, func(c *testCluster) {
		c.calm, c.loggerOf, c.mail = true, s.logger, s.send
		if td.HasArg("keep") {
			c.keepBytes = 1
		}
		if td.HasArg("bound") {
			var mib int64
			td.ScanArgs(s.t, "bound", &mib)
			c.maxUnsynced = mib << 20
		}
	})
	s.quiet = true
	s.rest()
	if leader := s.id(td, "leader"); leader != 0 {
		s.c.members[leader].replica().inbox.request(loopFunc(func(l *loop) { _ = l.node.Campaign() }))
		s.deliver(1<<20, mailRule{})
	}
	s.quiet = false
}

// send takes what a member sends.
func (s *scenario) send(m *raftpb.Message) {
	s.mu.Lock()
	s.sent = append(s.sent, m)
	s.mu.Unlock()
}

func (s *scenario) tell(e event) {
	s.mu.Lock()
	s.told = append(s.told, e)
	s.mu.Unlock()
}

// rest waits until no member has anything to do, and notes what they did.
func (s *scenario) rest() {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortStableFunc(s.sent, func(a, b *raftpb.Message) int {
		return cmp.Or(cmp.Compare(a.GetFrom(), b.GetFrom()), cmp.Compare(a.GetTo(), b.GetTo()),
			cmp.Compare(a.GetType(), b.GetType()), cmp.Compare(a.GetIndex(), b.GetIndex()))
	})
	s.mail = append(s.mail, s.sent...)
	s.sent = nil
	slices.SortStableFunc(s.told, event.order)
	for _, e := range s.told {
		s.print("  %d: %s\n", e.member, e.text)
	}
	s.told = nil
}

func (s *scenario) print(format string, args ...any) {
	if !s.quiet {
		fmt.Fprintf(&s.out, format, args...)
	}
}

// maxDelivered is more than any step needs.
const maxDelivered = 5000

// deliver brings up to count messages that only covers, one at a time.
func (s *scenario) deliver(count int, only mailRule) {
	s.rest()
	for n := range count {
		if n == maxDelivered {
			s.t.Fatalf("%d messages were delivered and there are more: %s", n, describe(s.mail[0]))
		}
		i := slices.IndexFunc(s.mail, func(m *raftpb.Message) bool { return only.covers(m) && !covered(s.held, m) })
		if i < 0 {
			return
		}
		m := s.mail[i]
		s.mail = slices.Delete(s.mail, i, i+1)
		lost := covered(s.lost, m)
		if text := describe(m); text != "" {
			if lost {
				text += ", lost"
			}
			s.print("%s\n", text)
		}
		if !lost && s.c.members[m.GetTo()] != nil && !s.c.members[m.GetFrom()].dead.Load() {
			s.c.members[m.GetFrom()].deliver(m)
		}
		s.rest()
	}
}

func (s *scenario) advance(td *datadriven.TestData) {
	const tick = 100 * time.Millisecond
	d, err := time.ParseDuration(td.CmdArgs[0].Key)
	if err != nil || d%tick != 0 {
		s.t.Fatalf("%s: not a number of ticks: %v", td.Pos, err)
	}
	for ; d > 0; d -= tick {
		time.Sleep(tick)
		s.deliver(1<<20, mailRule{})
	}
}

// begin starts a call of m, whose end is told.
func (s *scenario) begin(m *testMember, what string, call func() error) {
	start := time.Now()
	go func() {
		err := call()
		result := "done"
		if err != nil {
			result = err.Error()
		}
		if took := time.Since(start); took > 0 {
			result += fmt.Sprintf(" (after %v)", took)
		}
		s.tell(event{m.id, true, what + ": " + result})
	}()
}

func (s *scenario) put(m *testMember, key string) {
	s.begin(m, "put "+key, func() error { return m.put(context.Background(), key, "v") })
}

func (s *scenario) putInTerm(td *datadriven.TestData) {
	m, key, term := s.member(td, 0), td.CmdArgs[1].Key, s.id(td, "term")
	s.begin(m, "put "+key, func() error {
		_, err := m.replica().ProposeInTerm(context.Background(), term, putRequest(key, "v"))
		return err
	})
}

func (s *scenario) fill(td *datadriven.TestData, size int) {
	m := s.member(td, 0)
	text := strings.Repeat("x", size)
	w := &m.replica().window // which is not what is tried
	w.mu.Lock()
	w.size = 1 << 40
	w.mu.Unlock()
	for range s.number(td, 1) {
		go func() {
			if err := m.put(context.Background(), "fill", text); err != nil {
				s.tell(event{m.id, true, "put fill: " + err.Error()})
			}
		}()
		synctest.Wait()
	}
}

func (s *scenario) change(td *datadriven.TestData) {
	m, kind, id := s.member(td, 0), td.CmdArgs[1].Key, uint64(s.number(td, 2))
	c := &command.Change{Type: raftpb.ConfChangeAddNode, MemberID: id, Member: command.Member{ID: id}}
	switch kind {
	case "learner":
		c.Type, c.Member.IsLearner = raftpb.ConfChangeAddLearnerNode, true
	case "promote":
		c.IsPromote = true
	case "remove":
		c.Type = raftpb.ConfChangeRemoveNode
	}
	s.begin(m, fmt.Sprint(kind, " ", id), func() error {
		result, err := m.replica().ProposeChange(context.Background(), c)
		if err != nil {
			return err
		}
		return result.Err
	})
}

func (s *scenario) join(id uint64) {
	m := &testMember{id: id, c: s.c, disk: vfs.NewCrashableMem(), state: newMemoryState(), ring: evidence.NewRing(0)}
	s.c.mu.Lock()
	s.c.members[id] = m
	s.c.mu.Unlock()
	m.restart()
}

// status tells of each member what it is, and what waits at it.
func (s *scenario) status() {
	for id := uint64(1); id <= uint64(len(s.c.members)); id++ {
		m := s.c.members[id]
		if m.dead.Load() {
			s.print("%d: down\n", id)
			continue
		}
		st := m.replica().Status()
		last, _ := m.log.LastIndex()
		line := fmt.Sprintf("%d: %s term=%d leader=%d last=%d commit=%d applied=%d", id,
			strings.TrimPrefix(st.State.String(), "State"), st.Term, st.Leader, last, st.Committed, st.Applied)
		_ = m.replica().inbox.ask(context.Background(), nil, loopFunc(func(l *loop) {
			for _, waiting := range []struct {
				what string
				n    int
			}{{"held", len(l.pending.held)}, {"forwarded", len(l.pending.forwarded)}, {"changes", len(l.pending.changes)}, {"reads", len(l.questions.rounds)}, {"questions", len(l.questions.others)}} {
				if waiting.n > 0 {
					line += fmt.Sprintf(" %s=%d", waiting.what, waiting.n)
				}
			}
			if to := l.node.BasicStatus().LeadTransferee; to != raft.None {
				line += fmt.Sprintf(" transferee=%d", to)
			}
		}))
		if unsynced := m.log.Unsynced().Entries; unsynced > 0 {
			line += fmt.Sprintf(" unsynced=%d", unsynced)
		}
		s.print("%s\n", line)
	}
}

// describe is a message as a line of text; empty: not worth one.
func describe(m *raftpb.Message) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d->%d %s term=%d", m.GetFrom(), m.GetTo(), m.GetType(), m.GetTerm())
	switch m.GetType() {
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp:
		if len(m.GetContext()) == 0 {
			return ""
		}
		b.WriteString(" for a read")
	case raftpb.MsgApp:
		fmt.Fprintf(&b, " after=%d commit=%d", m.GetIndex(), m.GetCommit())
	case raftpb.MsgAppResp:
		if m.GetReject() {
			b.WriteString(" rejected")
		}
		fmt.Fprintf(&b, " index=%d", m.GetIndex())
	case raftpb.MsgVoteResp, raftpb.MsgPreVoteResp:
		if m.GetReject() {
			b.WriteString(" rejected")
		}
	case raftpb.MsgReadIndexResp:
		fmt.Fprintf(&b, " index=%d", m.GetIndex())
	case raftpb.MsgSnap:
		fmt.Fprintf(&b, " index=%d", m.GetSnapshot().GetMetadata().GetIndex())
	}
	switch context := string(m.GetContext()); {
	case strings.HasPrefix(context, peers.ContextRefused):
		fmt.Fprintf(&b, " refuses=%d", (len(context)-len(peers.ContextRefused))/8)
	case context == peers.ContextEarly || context == peers.ContextQuorum:
		b.WriteString(" " + context)
	case strings.HasPrefix(context, peers.ContextTerm):
		fmt.Fprintf(&b, " sent-in=%d", binary.BigEndian.Uint64([]byte(context[len(peers.ContextTerm):])))
	}
	if m.GetType() != raftpb.MsgReadIndex && m.GetType() != raftpb.MsgReadIndexResp {
		for _, e := range m.GetEntries() {
			b.WriteString(" [" + describeEntry(e) + "]")
		}
	}
	return b.String()
}

func describeEntry(e *raftpb.Entry) string {
	where := ""
	if e.GetIndex() > 0 {
		where = fmt.Sprint(e.GetIndex(), " ")
	}
	if e.GetType() == raftpb.EntryConfChange {
		var cc raftpb.ConfChange
		if err := proto.Unmarshal(e.GetData(), &cc); err != nil {
			return where + err.Error()
		}
		return where + fmt.Sprint(strings.TrimPrefix(cc.GetType().String(), "ConfChange"), " ", cc.GetNodeId())
	}
	if len(e.GetData()) == 0 {
		return where + "empty"
	}
	request, err := command.Decode(e.GetData())
	if err != nil {
		return where + err.Error()
	}
	return where + "put " + string(request.GetPut().GetKey())
}

// logger has the replica's lines told, and those of raft on who leads.
func (s *scenario) logger(id uint64) *zap.Logger { return zap.New(&scenarioLog{s: s, id: id}) }

// scenarioLog is a zapcore.Core.
type scenarioLog struct {
	s  *scenario
	id uint64
}

func (l *scenarioLog) Enabled(level zapcore.Level) bool  { return level >= zapcore.InfoLevel }
func (l *scenarioLog) With([]zapcore.Field) zapcore.Core { return l }
func (l *scenarioLog) Sync() error                       { return nil }
func (l *scenarioLog) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if (e.LoggerName == "" || strings.HasPrefix(e.Message, "raft.node")) && !strings.Contains(e.Message, "initial election") {
		return c.AddCore(e, l)
	}
	return c
}

// scenarioFields are those that a scenario shows.
var scenarioFields = []string{"transferee-member-id", "new-leader-member-id", "reason", "of", "waits-for"}

func (l *scenarioLog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	text := e.Message
	encoded := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(encoded)
	}
	for _, name := range scenarioFields {
		if value, ok := encoded.Fields[name]; ok {
			text += fmt.Sprintf(" %s=%v", name, value)
		}
	}
	l.s.tell(event{l.id, false, text})
	return nil
}
