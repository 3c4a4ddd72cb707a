package logsink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// ticking is a clock that the test moves.
type ticking struct{ now time.Time }

func (c *ticking) Now() time.Time                         { return c.now }
func (c *ticking) NewTicker(d time.Duration) *time.Ticker { return time.NewTicker(d) }

// What a member says in an hour without its peers, as measured: it was 19,000 lines.
func TestLostPeersAreFolded(t *testing.T) {
	for _, level := range []string{"info", "debug"} {
		var out bytes.Buffer
		clock := &ticking{time.Unix(1_000_000, 0)}
		l, err := New(Config{Level: level, Writer: &out, Sink: Options{BufferBytes: 1 << 26}})
		if err != nil {
			t.Fatal(err)
		}
		lg := l.WithOptions(zap.WithClock(clock))
		raft := lg.Named("raft").Sugar()
		lines := func() (all []map[string]any) {
			t.Helper()
			if err := l.Sync(); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(out.String()) {
				m := map[string]any{}
				if err := json.Unmarshal([]byte(line), &m); err != nil {
					t.Fatal(err)
				}
				all = append(all, m)
			}
			out.Reset()
			return all
		}
		second := func(i int) {
			clock.now = clock.now.Add(time.Second)
			raft.Infof("a is starting a new election at term 2")
			raft.Infof("a became pre-candidate at term 2")
			raft.Infof("a received MsgPreVoteResp from a at term 2")
			raft.Infof("a has received 1 MsgPreVoteResp votes and 0 vote rejections")
			for _, peer := range []string{"b", "c"} {
				raft.Infof("a [logterm: 2, index: 8] sent MsgPreVote request to %s at term 2", peer)
				if i%4 == 0 {
					err := fmt.Errorf("read tcp 127.0.0.1:%d: connection refused", 30000+i)
					lg.Warn("prober detected unhealthy status", zap.String("round-tripper-name", "R"), zap.String("remote-peer-id", peer), zap.Error(err))
					lg.Warn("failed to get version", zap.String("remote-member-id", peer), zap.Error(err))
				}
			}
		}
		for i := range 4 {
			second(i)
		}
		first := lines()
		if level == "debug" {
			if len(first) != 4*6+4 {
				t.Errorf("%d lines at level debug", len(first))
			}
			_ = l.Close()
			continue
		}
		if len(first) != 6+4 {
			t.Errorf("at first %d lines: %v", len(first), first)
		}
		for _, m := range first {
			if m[RepeatsKey] != nil {
				t.Errorf("a first line is changed: %v", m)
			}
		}
		for i := range 3600 - 4 {
			second(i)
		}
		hour := lines()
		if len(hour) > 60*10 || len(hour) < 50*10 {
			t.Errorf("%d lines in an hour, want ten a minute", len(hour))
		}
		if hour[0][RepeatsKey] == nil {
			t.Errorf("does not say how often it was repeated: %v", hour[0])
		}
		// Something else is told at once.
		lg.Warn("failed to get version", zap.String("remote-member-id", "b"), zap.Error(errors.New("i/o timeout")))
		lg.Warn("not of the kind")
		lg.Warn("not of the kind")
		if got := lines(); len(got) != 3 {
			t.Errorf("%v", got)
		}
		// A peer that is back ends what is said of it, with what was left out, and only of it.
		lg.Info("peer became active", zap.String("peer-id", "b"))
		got := lines()
		if n := len(got); n != 3 || got[n-1]["msg"] != "peer became active" {
			t.Fatalf("%v", got)
		}
		for _, m := range got[:2] {
			if id := fmt.Sprint(m["remote-peer-id"], m["remote-member-id"]); !strings.Contains(id, "b") || m[RepeatsKey] == nil {
				t.Errorf("%v", m)
			}
		}
		raft.Infof("raft.node: a elected leader b at term 3")
		if got := lines(); len(got) != 7 {
			t.Errorf("%d lines with a leader, want the last of six kinds and its own: %v", len(got), got)
		}
		// From here on it is new again.
		second(0)
		fresh := 0
		for _, m := range lines() {
			if m[RepeatsKey] == nil {
				fresh++
			}
		}
		if fresh != 6+2 {
			t.Errorf("%d new lines, want those of raft and of the peer that was back", fresh)
		}
		_ = l.Close()
	}
}

// No number of kinds takes more than its memory.
func TestFoldIsBounded(t *testing.T) {
	f := &folder{}
	for i := range 10 * maxTold {
		f.pass(nil, zapcore.Entry{Message: fmt.Sprint(i, " became pre-candidate at term 2")}, nil)
	}
	if n := len(f.told); n > maxTold {
		t.Errorf("%d kinds are kept", n)
	}
}
