package datadir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// told is what a member of a running cluster answers.
type told struct {
	cluster   uint64
	members   []*command.Member
	version   string
	downgrade string // "": it does not say
}

func (m *told) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(peers.HeaderCluster, fmt.Sprintf("%x", m.cluster))
	switch {
	case r.URL.Path == peers.PathMembers:
		_ = json.NewEncoder(w).Encode(m.members)
	case r.URL.Path == peers.PathVersion:
		fmt.Fprintf(w, `{"etcdserver":"3.7.3","etcdcluster":%q}`, m.version)
	case r.URL.Path == peers.PathDowngradeEnabled && m.downgrade != "":
		_, _ = io.WriteString(w, m.downgrade)
	default:
		http.NotFound(w, r)
	}
}

// Who a member without data is, by what the others answer: the only place where it learns that its
// data is gone.
func TestIdentify(t *testing.T) {
	answers := &told{}
	srv := httptest.NewServer(answers)
	defer srv.Close()
	client := peers.NewClient(peers.NewRoundTripper(peers.Options{}))
	given := "a=http://127.0.0.1:1,b=" + srv.URL
	id, err := Found("a", given, "t")
	if err != nil {
		t.Fatal(err)
	}
	reset := func() {
		*answers = told{cluster: 0xc1, version: "3.7.0", members: []*command.Member{
			{ID: 7, PeerURLs: []string{"http://127.0.0.1:1"}}, {ID: 8, Name: "b", PeerURLs: []string{srv.URL}, ClientURLs: []string{"http://b"}}}}
	}
	n := Newcomer{Name: "a", Seeds: Seeds{InitialCluster: given, Token: "t"}, Client: client, Logger: zap.NewNop(), MaxLearners: 1}
	for _, c := range []struct {
		what     string
		existing bool
		change   func()
		wants    string // a part of the error; "": none
	}{
		{"a new cluster", false, func() {}, ""},
		{"a new cluster that knows this member, but never heard of it", false, func() { answers.members = id.Members }, ""},
		{"a new cluster in which it has run", false, func() { answers.members = []*command.Member{{ID: id.Member, ClientURLs: []string{"http://a"}}} }, "has already been bootstrapped"},
		{"a new cluster whose others answer nonsense", false, func() { answers.members = nil }, ""},
		{"joins", true, func() {}, ""},
		{"joins where it has run", true, func() { answers.members[0].ClientURLs = []string{"http://a"} }, "member 7 has already been bootstrapped"},
		{"was not added", true, func() { answers.members = answers.members[1:] }, "member count is unequal"},
		{"was added under another URL", true, func() { answers.members[0].PeerURLs = []string{"http://127.0.0.1:3"} }, "no match found for existing member"},
		{"too old a cluster", true, func() { answers.version = "2.3.0" }, "incompatible with current running cluster"},
		{"too new a cluster", true, func() { answers.version = "9.0.0" }, "incompatible with current running cluster"},
		{"no version", true, func() { answers.version = "" }, "incompatible with current running cluster"},
		{"no downgrade", true, func() { answers.downgrade = "false" }, ""},
		{"a downgrade below this version", true, func() { answers.downgrade = "true" }, "incompatible with current running cluster"},
		{"too many learners", true, func() { answers.members[0].IsLearner, answers.members[1].IsLearner = true, true }, "too many learner members"},
		{"nobody", true, func() { answers.members = nil }, "failed to get raft cluster member(s)"},
	} {
		t.Run(c.what, func(t *testing.T) {
			reset()
			c.change()
			n.Existing = c.existing
			got, err := n.Identify(t.Context())
			if (err != nil) != (c.wants != "") || err != nil && !strings.Contains(err.Error(), c.wants) {
				t.Fatalf("%v, want %q", err, c.wants)
			}
			if err != nil {
				return
			}
			if c.existing && (got.Member != 7 || got.Cluster != 0xc1 || !got.Joining || got.Founds()) || !c.existing && (got.Member != id.Member || !got.Founds()) {
				t.Errorf("%+v", got)
			}
		})
	}
	n.Existing, n.Seeds.Join = false, func(_ context.Context, own uint64) (string, error) {
		if own != id.Member {
			return "", errors.New("another id")
		}
		return given + ",c=http://127.0.0.1:4", nil
	}
	reset()
	if got, err := n.Identify(t.Context()); err != nil || len(got.Members) != 3 {
		t.Errorf("with others that were found: %+v, %v", got, err)
	}
}

// A question that nobody waits for any more, since another member has answered, is no member that
// cannot be reached.
func TestCancelledQuestionIsNoFailure(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	j := &joiner{client: http.DefaultClient, logger: zap.New(core), timeout: time.Minute}
	m := &command.Member{ID: 7, PeerURLs: []string{"http://127.0.0.1:1"}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.askMember(ctx, m, peers.PathVersion, nil); !errors.Is(err, context.Canceled) || logs.Len() != 0 {
		t.Errorf("%v; logged %v", err, logs.All())
	}
	if err := j.askMember(t.Context(), m, peers.PathVersion, nil); err == nil || logs.FilterMessage("failed to reach the peer URL").Len() != 1 {
		t.Errorf("%v; logged %v", err, logs.All())
	}
}

// A founder hears nobody who may know it as a member that has run.
func TestFounder(t *testing.T) {
	answers := &told{}
	srv := httptest.NewServer(answers)
	defer srv.Close()
	for _, c := range []struct {
		what        string
		url         string // "": nobody answers
		ran         bool   // the peer knows this member as one that has run
		knows, said bool   // by its calls
		leader      uint64
		wants       error
		fails       bool
	}{
		{what: "a peer that does not know it", url: srv.URL},
		{what: "a peer that does", url: srv.URL, ran: true, wants: errUnheard, fails: true},
		{what: "a peer that does, when there is a leader", url: srv.URL, ran: true, leader: 2},
		{what: "a peer that cannot be asked", wants: errUnheard},
		{what: "a peer that cannot be asked, and calls a stranger", said: true},
		{what: "a peer that cannot be asked, and calls one that has run", said: true, knows: true, wants: errUnheard, fails: true},
	} {
		t.Run(c.what, func(t *testing.T) {
			*answers = told{members: []*command.Member{{ID: 1}}}
			if c.ran {
				answers.members[0].ClientURLs = []string{"http://a"}
			}
			var failed error
			f := NewFounder(FounderEnv{
				Member: 1, Client: peers.NewClient(peers.NewRoundTripper(peers.Options{})), Logger: zap.NewNop(),
				URLs: func(uint64) []string {
					if c.url == "" {
						return nil
					}
					return []string{c.url}
				},
				KnownBy: func(uint64) (bool, bool) { return c.knows, c.said },
				Leader:  func() uint64 { return c.leader },
				Failed:  func(err error) { failed = err },
			})
			for range 2 { // the second time it need not ask
				if err := f.Hear(t.Context(), 2); !errors.Is(err, c.wants) {
					t.Errorf("%v, want %v", err, c.wants)
				}
			}
			if (failed != nil) != c.fails {
				t.Errorf("the member fails with %v", failed)
			}
		})
	}
}

// Watch ends with the first leader, or with the member.
func TestFounderIsOver(t *testing.T) {
	for _, led := range []bool{true, false} {
		changed, stop := make(chan struct{}), make(chan struct{})
		leader := make(chan uint64, 1)
		leader <- 0
		f := NewFounder(FounderEnv{
			Client:        http.DefaultClient,
			Leader:        func() uint64 { l := <-leader; leader <- l; return l },
			LeaderChanged: func() <-chan struct{} { return changed },
		})
		done := make(chan struct{})
		go func() { f.Watch(stop); close(done) }()
		if led {
			<-leader
			leader <- 3
			close(changed)
		} else {
			close(stop)
		}
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("it still watches")
		}
		if f.over.Load() != led {
			t.Errorf("over %v with a leader %v", f.over.Load(), led)
		}
	}
}
