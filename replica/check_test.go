package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

func liars(c *testCluster) { c.lies = true }

// An entry that cannot be applied would end each member that has it in its log, at each start
// again.
func TestPoisonedEntriesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, liars)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		synctest.Wait()
		follower, liar := c.others(leader)[0], c.others(leader)[1]
		context := func(context string) []byte {
			data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(9)), Context: []byte(context)})
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		last, _ := follower.log.LastIndex()
		term := leader.replica().Term()
		logTerm, err := follower.log.Term(last)
		if err != nil {
			t.Fatal(err)
		}
		for name, e := range map[string]*raftpb.Entry{
			"no request":                  {Data: []byte("\xff\xff\xff")},
			"a request cut short":         {Data: []byte{0x22, 0x05, 0x0a}},
			"a user that is not UTF-8":    {Data: []byte{0xa2, 0x06, 0x03, 0x12, 0x01, 0xff}},
			"an unknown type":             {Type: new(raftpb.EntryType(7))},
			"a negative type":             {Type: new(raftpb.EntryType(-1))},
			"a joint change":              {Type: raftpb.EntryConfChangeV2.Enum()},
			"no change":                   {Type: raftpb.EntryConfChange.Enum(), Data: []byte("\xff\xff")},
			"a change without JSON":       {Type: raftpb.EntryConfChange.Enum(), Data: context("no JSON")},
			"a change of another's":       {Type: raftpb.EntryConfChange.Enum(), Data: context(`{"id":8}`)},
			"a change that is not a type": {Type: raftpb.EntryConfChange.Enum(), Data: []byte{0x10, 0x09}},
		} {
			proposal := &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(liar.id), To: new(leader.id), Entries: []*raftpb.Entry{e}}
			if err := leader.replica().Process(proposal); !errors.Is(err, ErrRefused) {
				t.Errorf("%s, proposed: %v", name, err)
			}
			e.Index, e.Term = new(last+1), new(term)
			// It is the leader's voice: nothing else tells it from a lie, and it would be committed
			// at once.
			poison := &raftpb.Message{
				Type: raftpb.MsgApp.Enum(), From: new(leader.id), To: new(follower.id), Term: new(term),
				Index: new(last), LogTerm: new(logTerm), Entries: []*raftpb.Entry{e}, Commit: new(last + 1),
			}
			if err := follower.replica().Process(poison); !errors.Is(err, ErrRefused) {
				t.Errorf("%s, appended: %v", name, err)
			}
		}
		synctest.Wait()
		if follower.refused(refusedEntry) == 0 || leader.refused(refusedEntry) == 0 {
			t.Error("it was not counted")
		}
		leader.mustPut("k", "w")
		follower.mustRead("k", "w")
	})
}

// A member that has just started may refuse a proposal before it knows the term.
func TestRefusalsOfNoTermAreTaken(t *testing.T) {
	m := &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Context: []byte(peers.ContextRefused + "12345678")}
	if err := checkForm(m, 1); err != nil {
		t.Error(err)
	}
	m.Context = nil
	if checkForm(m, 1) == nil {
		t.Error("an acknowledgement without a term is taken")
	}
}

// A member whose term is nearly the last holds no election any more.
func TestTermsOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, liars)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		for _, typ := range []raftpb.MessageType{
			raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp,
			raftpb.MsgTimeoutNow, raftpb.MsgTransferLeader, raftpb.MsgReadIndexResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp, raftpb.MsgSnap,
		} {
			for _, m := range c.members {
				liar := c.others(m)[0]
				for _, term := range []uint64{math.MaxUint64, math.MaxUint64 - 1, 1 << 63, maxTerm(time.Now().Add(time.Minute))} {
					lie := &raftpb.Message{Type: typ.Enum(), From: new(liar.id), To: new(m.id), Term: new(term), Context: []byte("CampaignTransfer")}
					switch typ {
					case raftpb.MsgReadIndexResp:
						lie.Entries = []*raftpb.Entry{{Data: []byte("12345678")}}
					case raftpb.MsgSnap:
						lie.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
							Index: new(uint64(1000)), Term: new(term), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}},
						}}
						m.replica().ProcessSnapshot(lie, func() error { t.Error("installed"); return nil }, func() {})
						continue
					case raftpb.MsgPreVoteResp:
						lie.Reject = new(true)
					}
					if err := m.replica().Process(lie); err != nil {
						t.Errorf("%s: %v", typ, err)
					}
				}
			}
		}
		synctest.Wait()
		for _, m := range c.members {
			if term := m.replica().Term(); term > 1000 {
				t.Fatalf("member %d is at term %d", m.id, term)
			}
			if m.refused(refusedTerm) == 0 {
				t.Errorf("member %d did not count it", m.id)
			}
			m.mustPut("k", "w")
		}
	})
}

// Where a term is accepted, it is by all, and none is lost to the others: one that was raised as
// far as a liar can, one that was away meanwhile, and one that is new.
func TestTermsWithinReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		away, raised := c.others(leader)[0], c.others(leader)[1]
		c.partition(away.id, true)
		term := maxTerm(time.Now())
		if term < 1<<49 {
			t.Errorf("the bound is %d", term) // else this shows little
		}
		if err := raised.replica().Process(&raftpb.Message{
			Type: raftpb.MsgHeartbeatResp.Enum(), From: new(leader.id), To: new(raised.id), Term: new(term),
		}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := raised.replica().Term(); got != term {
			t.Fatalf("term %d, want %d", got, term)
		}
		for range 20 { // more than the bound, for moments
			if err := c.leader().replica().Process(&raftpb.Message{
				Type: raftpb.MsgTransferLeader.Enum(), From: new(raised.id), To: new(c.leader().id), Term: new(c.leader().replica().Term()),
			}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		c.partition(away.id, false)
		c.leader().mustChange(&command.Change{Type: raftpb.ConfChangeAddLearnerNode, MemberID: 4, Member: command.Member{ID: 4, IsLearner: true}})
		c.join(4)
		for _, m := range c.members {
			for try := 0; m.put(c.short(), "k", "v") != nil; try++ { // what was proposed to a leader that had to go is lost
				if try == 20 {
					t.Fatalf("member %d does not come back", m.id)
				}
			}
			if got := m.replica().Term(); got < term {
				t.Errorf("member %d is at term %d", m.id, got)
			}
		}
	})
}

// What a follower cannot have does not count as a promise.
func TestFalseAcknowledgements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, liars)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		synctest.Wait()
		last, _ := leader.log.LastIndex()
		for _, other := range c.others(leader) {
			c.partition(other.id, true)
		}
		for _, other := range c.others(leader) {
			for _, index := range []uint64{last + 1, last + 1000, math.MaxUint64 - 1, math.MaxUint64} {
				if err := leader.replica().Process(&raftpb.Message{
					Type: raftpb.MsgAppResp.Enum(), From: new(other.id), To: new(leader.id), Term: new(leader.replica().Term()), Index: new(index),
				}); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		if err := leader.put(c.short(), "k", "w"); err == nil {
			t.Error("a write was committed without a second member")
		}
		if leader.refused(refusedAck) == 0 {
			t.Error("it was not counted")
		}
		for _, other := range c.others(leader) {
			c.partition(other.id, false)
		}
		c.leader().mustPut("k", "x")
	})
}

// Raft slices its list of reads by what a majority has answered.
func TestFalseReadAcknowledgements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, liars)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		leader.mustRead("k", "v")
		synctest.Wait()
		for _, other := range c.others(leader) {
			c.partition(other.id, true)
		}
		term := leader.replica().Term()
		for _, context := range [][]byte{{1}, []byte("1234567"), []byte("12345678"), []byte("123456789"), binary.LittleEndian.AppendUint64(nil, 3)} {
			for _, other := range c.others(leader) {
				if err := leader.replica().Process(&raftpb.Message{
					Type: raftpb.MsgHeartbeatResp.Enum(), From: new(other.id), To: new(leader.id), Term: new(term), Context: context,
				}); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		if leader.replica().Term() != term {
			t.Fatal("the leader changed: this shows nothing")
		}
		if err := leader.replica().ReadBarrier(c.short()); err == nil {
			t.Error("a read was answered without a second member")
		}
		if leader.refused(refusedAck) != 10 {
			t.Errorf("%v were counted, not 10", leader.refused(refusedAck))
		}
		for _, other := range c.others(leader) {
			c.partition(other.id, false)
		}
		c.leader().mustRead("k", "v")
	})
}

// Raft panics on many forms that it never sends. What passes checkForm it takes, in any state,
// unless its own log is contradicted.
func TestCheckedMessagesDoNotPanicRaft(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	passed := 0
	for range 3000 {
		node, storage := newRaftForTest(t, r)
		var asked heartbeats
		for range 40 {
			m := randomRaftMessage(r, node.BasicStatus().GetTerm())
			if checkForm(m, 1) != nil {
				continue
			}
			status := node.BasicStatus()
			if m.GetTerm() > status.GetTerm()+1000 || (m.GetType() == raftpb.MsgTransferLeader && status.RaftState != raft.StateLeader) {
				continue // as takes does
			}
			if m.GetType() == raftpb.MsgHeartbeatResp && len(m.GetContext()) > 0 && !asked.asked(m) {
				continue
			}
			passed++
			if !stepOrContradict(t, node, storage, m, asked.sent) {
				break
			}
		}
	}
	if passed < 2000 {
		t.Errorf("only %d messages passed: this tries little", passed)
	}
}

// stepOrContradict is false if raft found that the log was contradicted.
func stepOrContradict(
	t *testing.T, node *raft.RawNode, storage *raft.MemoryStorage, m *raftpb.Message, sent func(*raftpb.Message),
) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			text := fmt.Sprint(p)
			if !strings.Contains(text, "is out of range [lastIndex(") && !strings.Contains(text, "conflict with committed entry") {
				t.Fatalf("%v: %s", m, text)
			}
			ok = false
		}
	}()
	_ = node.Step(m)
	for node.HasReady() {
		rd := node.Ready()
		for _, out := range rd.Messages {
			sent(out)
			if out.GetTo() == raft.LocalAppendThread {
				if s := out.GetSnapshot(); !raft.IsEmptySnap(s) {
					if err := storage.ApplySnapshot(s); err != nil {
						t.Fatal(err)
					}
				}
				if err := storage.Append(out.GetEntries()); err != nil {
					t.Fatal(err)
				}
			}
			for _, response := range out.GetResponses() {
				_ = node.Step(response)
			}
			if out.GetTo() == raft.LocalApplyThread {
				for _, e := range out.GetEntries() {
					if e.GetType() == raftpb.EntryConfChange {
						node.ApplyConfChange(&raftpb.ConfChange{}) // refused by the state machine
					}
				}
			}
		}
	}
	return true
}

// newRaftForTest is member 1 of three, which leads, follows or is a candidate.
func newRaftForTest(t *testing.T, r *rand.Rand) (*raft.RawNode, *raft.MemoryStorage) {
	storage := raft.NewMemoryStorage()
	if err := storage.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(uint64(5)), Term: new(uint64(2)), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}},
	}}); err != nil {
		t.Fatal(err)
	}
	if err := storage.Append([]*raftpb.Entry{{Index: new(uint64(6)), Term: new(uint64(2))}, {Index: new(uint64(7)), Term: new(uint64(3))}}); err != nil {
		t.Fatal(err)
	}
	if err := storage.SetHardState(&raftpb.HardState{Term: new(uint64(3)), Commit: new(uint64(6))}); err != nil {
		t.Fatal(err)
	}
	node, err := raft.NewRawNode(&raft.Config{
		ID: 1, ElectionTick: 10, HeartbeatTick: 1, Storage: storage, Applied: 5, AsyncStorageWrites: true, MaxSizePerMsg: 1 << 20,
		MaxCommittedSizePerReady: 1 << 20, MaxInflightMsgs: 16, CheckQuorum: true, PreVote: r.IntN(2) == 0, Logger: panickingLogger{},
	})
	if err != nil {
		t.Fatal(err)
	}
	step := func(m *raftpb.Message) { stepOrContradict(t, node, storage, m, func(*raftpb.Message) {}) }
	switch r.IntN(3) {
	case 0:
		step(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(3))})
	default:
		if err := node.Campaign(); err != nil {
			t.Fatal(err)
		}
		for node.HasReady() {
			step(&raftpb.Message{Type: raftpb.MsgBeat.Enum(), From: new(raft.LocalAppendThread)})
		}
		if r.IntN(2) == 0 {
			for _, typ := range []raftpb.MessageType{raftpb.MsgPreVoteResp, raftpb.MsgVoteResp} {
				term := node.BasicStatus().GetTerm()
				if typ == raftpb.MsgPreVoteResp {
					term++
				}
				step(&raftpb.Message{Type: typ.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(term)})
			}
		}
	}
	return node, storage
}

func randomRaftMessage(r *rand.Rand, term uint64) *raftpb.Message {
	number := func() *uint64 {
		switch r.IntN(12) {
		case 0:
			return nil
		case 1:
			return new(r.Uint64())
		case 2:
			return new(math.MaxUint64 - uint64(r.IntN(2)))
		case 3:
			return new(uint64(0))
		default:
			return new(uint64(r.IntN(12)))
		}
	}
	m := &raftpb.Message{
		Type: new(raftpb.MessageType(r.IntN(26) - 1)), From: new(uint64(1 + r.IntN(4))), To: new(uint64(1)),
		LogTerm: number(), Index: number(), Commit: number(), RejectHint: number(), Reject: new(r.IntN(2) == 0),
	}
	switch r.IntN(4) {
	case 0:
		m.Term = number()
	case 1, 2:
		m.Term = new(term + uint64(r.IntN(3)))
		if m.GetType() == raftpb.MsgProp || m.GetType() == raftpb.MsgReadIndex {
			m.Term = nil
		}
	}
	if r.IntN(3) == 0 {
		m.Context = []byte("12345678")
		if r.IntN(2) == 0 {
			m.Context = binary.LittleEndian.AppendUint64(nil, uint64(r.IntN(4)))[:8-r.IntN(8)*r.IntN(2)]
		}
	}
	if r.IntN(8) == 0 {
		m.Responses = []*raftpb.Message{{Type: raftpb.MsgAppResp.Enum()}}
	}
	for i := range r.IntN(4) {
		e := &raftpb.Entry{Index: number(), Term: number(), Data: []byte("data")}
		if r.IntN(2) == 0 {
			e.Index, e.Term = new(m.GetIndex()+uint64(i)+1), new(m.GetTerm())
		}
		m.Entries = append(m.Entries, e)
	}
	if m.GetType() == raftpb.MsgSnap || r.IntN(10) == 0 {
		m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: number(), Term: number(), ConfState: &raftpb.ConfState{}}}
		for range r.IntN(5) {
			m.Snapshot.Metadata.ConfState.Voters = append(m.Snapshot.Metadata.ConfState.Voters, uint64(r.IntN(4)))
		}
		for range r.IntN(2) {
			m.Snapshot.Metadata.ConfState.Learners = append(m.Snapshot.Metadata.ConfState.Learners, uint64(r.IntN(5)))
		}
	}
	return m
}

// panickingLogger is raft's when nothing is to be said.
type panickingLogger struct{}

func (panickingLogger) Debug(...any)            {}
func (panickingLogger) Debugf(string, ...any)   {}
func (panickingLogger) Error(...any)            {}
func (panickingLogger) Errorf(string, ...any)   {}
func (panickingLogger) Info(...any)             {}
func (panickingLogger) Infof(string, ...any)    {}
func (panickingLogger) Warning(...any)          {}
func (panickingLogger) Warningf(string, ...any) {}
func (panickingLogger) Fatal(v ...any)          { panic(fmt.Sprint(v...)) }
func (panickingLogger) Fatalf(f string, v ...any) {
	panic(fmt.Sprintf(f, v...))
}
func (panickingLogger) Panic(v ...any)            { panic(fmt.Sprint(v...)) }
func (panickingLogger) Panicf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }

// The checks never panic themselves, whatever comes.
func FuzzCheckMessage(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		data, err := proto.Marshal(randomRaftMessage(r, 3))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &raftpb.Message{}
		if proto.Unmarshal(data, m) != nil || checkForm(m, 1) != nil || checkEntries(m) != nil {
			return
		}
		for _, e := range m.GetEntries() { // then the applier can
			if m.GetType() != raftpb.MsgApp && m.GetType() != raftpb.MsgProp {
				continue
			}
			if e.GetType() == raftpb.EntryNormal {
				if _, err := command.Decode(e.GetData()); err != nil {
					t.Fatal(err)
				}
			} else if _, _, err := decodeChange(e); err != nil {
				t.Fatal(err)
			}
		}
	})
}
