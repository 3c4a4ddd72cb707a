package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/timemap"
)

func TestExcerpt(t *testing.T) {
	for value, want := range map[string]string{
		"":            `""`,
		"a\nb":        `"a\nb"`,
		"\xff":        `"\xff"`,
		long(40, "ä"): `"` + long(40, "ä") + `"`,
		long(41, "ä"): `"` + long(40, "ä") + `"...`,
	} {
		if got := excerpt([]byte(value), false); got != want {
			t.Errorf("%q: %s", value, got)
		}
	}
}

func long(n int, s string) (all string) {
	for range n {
		all += s
	}
	return all
}

// TestWrittenSince: of a version that no member has noted yet, it is said since when; the earliest
// member that had not seen it counts, and who has noted it more.
func TestWrittenSince(t *testing.T) {
	at := func(second int) *timemap.Point {
		return &timemap.Point{Time: time.Date(2026, 11, 29, 12, 0, second, 0, time.Local)}
	}
	// Two members' answers to of=5, 6 and 7: not noted by either, by one, by both.
	answers := []timemap.Answer{
		{Of: []timemap.AnswerOf{{Revision: 5, Interval: timemap.Interval{From: at(2)}}, {Revision: 6, Interval: timemap.Interval{From: at(2)}}, {Revision: 7, Interval: timemap.Interval{From: at(3), To: at(5)}}, {Revision: 8}}},
		{Of: []timemap.AnswerOf{{Revision: 5, Interval: timemap.Interval{From: at(1)}}, {Revision: 6, Interval: timemap.Interval{From: at(2), To: at(3)}}, {Revision: 7, Interval: timemap.Interval{From: at(3), To: at(4)}}, {Revision: 8}}},
	}
	cfg := clientv3.Config{Logger: zap.NewNop()}
	for _, a := range answers {
		member := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(a)
		}))
		defer member.Close()
		cfg.Endpoints = append(cfg.Endpoints, member.URL)
	}
	cli, err := clientv3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	when, err := past{&ctl{}, cli}.writtenAt(t.Context(), []int64{5, 6, 7, 8})
	if err != nil {
		t.Fatal(err)
	}
	for rev, want := range map[int64]string{5: "since 2026-11-29 12:00:01", 6: "2026-11-29 12:00:03", 7: "2026-11-29 12:00:04", 8: "not known"} {
		var w *writtenKey
		if in, ok := when[rev]; ok {
			w = intervalOf(in)
		}
		if got := w.text(); got != want {
			t.Errorf("revision %d: %s, want %s", rev, got, want)
		}
	}
	if text, err := json.Marshal(intervalOf(when[5])); err != nil || strings.Contains(string(text), `"to"`) || !strings.Contains(string(text), `"from"`) {
		t.Errorf("as JSON: %s, %v", text, err)
	}
}

// TestEveryEndpoint: a member that takes the connection and says nothing, as one that is stopped, costs
// the answers of the others nothing.
func TestEveryEndpoint(t *testing.T) {
	t.Parallel()
	stopped, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer stopped.Close()
	running := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(timemap.Answer{Of: []timemap.AnswerOf{{Revision: 5, Interval: timemap.Interval{From: &timemap.Point{Time: time.Unix(1, 0)}}}}})
	}))
	defer running.Close()
	cli, err := clientv3.New(clientv3.Config{Logger: zap.NewNop(), Endpoints: []string{"http://" + stopped.Addr().String(), running.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	c := &ctl{}
	c.global.CommandTimeout = time.Second
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	when, err := past{c, cli}.writtenAt(ctx, []int64{5})
	if _, ok := when[5]; err != nil || !ok {
		t.Errorf("%v, %v", when, err)
	}
	if ctx.Err() != nil {
		t.Error("all of the time was spent on the one that is stopped")
	}
}

// TestTopWithoutUser: what a stranger is told of a cluster with users.
func TestTopWithoutUser(t *testing.T) {
	t.Parallel()
	err := withoutUser(fmt.Errorf("http://m1:2379: %s", rpctypes.ErrUserEmpty.Error()))
	if told, ok := errors.AsType[*exitError](err); !ok || !strings.Contains(told.hint, "--user") {
		t.Errorf("%v", err)
	}
	if other := errors.New("no answer in time"); withoutUser(other) != other || withoutUser(nil) != nil {
		t.Error("another error is taken for it")
	}
}
