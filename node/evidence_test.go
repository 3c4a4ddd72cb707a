package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/transport"
)

// TestLastWordsAndPings speaks to a member's witness as a peer does.
func TestLastWordsAndPings(t *testing.T) {
	w := newWitness(&Config{}, zap.NewNop(), prometheus.NewRegistry(), nil)
	w.self = 1
	w.leader = func() uint64 { return 0xab }
	var leaves []uint64 // as the replica is told: it hands over to somebody else
	w.leaves = func(id uint64) { leaves = append(leaves, id) }
	w.links.SetPeers([]uint64{0xab})
	mux := peers.NewMux(nil)
	w.register(mux)
	s := httptest.NewServer(mux)
	defer s.Close()
	do := func(method, path, from, body string, want int) string {
		t.Helper()
		req, err := http.NewRequest(method, s.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(peers.HeaderFrom, from)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%s %s: %d, %v", method, path, resp.StatusCode, err)
		}
		return string(text)
	}
	do(http.MethodPost, peers.PathLastWords, "ab", "failing the raft log cannot be written", http.StatusNoContent)
	do(http.MethodPost, peers.PathLastWords, "ab", "stopping asked to stop", http.StatusNoContent)
	do(http.MethodPost, peers.PathLastWords, "ab", "elected never", http.StatusNoContent)          // not last words
	do(http.MethodPost, peers.PathLastWords, "cd", "failing a stranger", http.StatusNoContent)     // not a member
	do(http.MethodPost, peers.PathLastWords, "", strings.Repeat("x", 1<<16), http.StatusNoContent) // not at all
	do(http.MethodGet, peers.PathLastWords, "ab", "", http.StatusMethodNotAllowed)
	do(http.MethodGet, "/other", "ab", "", http.StatusNotFound)
	w.caughtUp(t.Context()) // asked for events before it was started, it had a nil pointer
	var got []string
	for _, e := range w.ring.Tell(0) {
		got = append(got, e.Kind+" "+e.Peer+" "+e.Note)
	}
	if fmt.Sprint(got) != "[peer-fails ab the raft log cannot be written peer-stops ab asked to stop]" {
		t.Errorf("%q", got)
	}
	if !slices.Equal(leaves, []uint64{0xab, 0xab}) {
		t.Errorf("leaving: %x", leaves)
	}
	var answer evidence.PingAnswer
	if err := json.Unmarshal([]byte(do(http.MethodGet, peers.PathPing, "ab", "", http.StatusOK)), &answer); err != nil || answer.Life != w.life || answer.NearMiss != 1 || answer.Leader != "ab" {
		t.Errorf("%+v, %v", answer, err)
	}
	if r := w.links.Report(); len(r) != 1 || r[0].HeardAgo < 0 || r[0].AnswerAgo != -1 {
		t.Errorf("%+v", r)
	}
}

// TestAskAMemberOfAnotherKind: etcd answers 404, which is nothing to tell and no failure.
func TestAskAMemberOfAnotherKind(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	tr := transport.New(transport.Config{MemberID: 1})
	defer tr.Stop()
	w := newWitness(&Config{}, zap.NewNop(), prometheus.NewRegistry(), nil)
	w.meet(member{self: 1, client: tr.Client(), urls: func(id uint64) []string {
		if id == 2 {
			return []string{s.URL}
		}
		return nil
	}})
	report, err := w.collect(t.Context(), 2)
	if err != nil || len(report.Events) != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	s.Close()
	if _, err := w.collect(t.Context(), 2); evidence.WhyNot(err) != evidence.Refused {
		t.Errorf("%v is %q", err, evidence.WhyNot(err))
	}
	if _, err := w.collect(t.Context(), 3); err == nil {
		t.Error("a member without an address answers")
	}
}
