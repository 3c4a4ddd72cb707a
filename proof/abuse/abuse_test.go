package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

func TestMain(m *testing.M) {
	beChild()
	os.Exit(m.Run())
}

// TestAbuse makes the attacks that one member can bear witness of, each for half a
// second and with less of all, one after the other on a few members. A member must live, have
// twice the memory that the row allows at most, and answer in the end.
func TestAbuse(t *testing.T) {
	if testing.Short() {
		t.Skip("real members, for a minute")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "belay-check")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	belay, err := cluster.Program(t.Context(), cluster.Belay, dir, os.Getenv("BELAY_BIN"), "")
	if err != nil {
		t.Fatal(err)
	}
	s := settings{binaries: map[cluster.Kind]string{cluster.Belay: belay}, dir: t.TempDir(), length: 500 * time.Millisecond, size: 1, quick: true, normalWithin: time.Minute}
	// Rows that want the same members share one.
	alike := func(a, b attack) bool {
		return a.users == b.users && a.tls == b.tls && a.few == b.few && slices.Equal(a.args, b.args)
	}
	var groups [][]attack
	for _, a := range attacks() {
		if a.unfit != "" {
			continue
		}
		i := slices.IndexFunc(groups, func(g []attack) bool { return alike(g[0], a) })
		if i < 0 {
			groups, i = append(groups, nil), len(groups)
		}
		groups[i] = append(groups[i], a)
	}
	for _, group := range groups {
		r := &run{settings: s, attack: group[0], kind: cluster.Belay}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		if err := r.start(ctx); err != nil {
			t.Fatal(err)
		}
		for _, a := range group {
			res := r.next(ctx, a)
			if res.err != nil {
				t.Errorf("%s: %v", a.name, res.err)
			}
			for _, fault := range res.faults {
				t.Errorf("%s: %s", a.name, fault)
			}
			t.Logf("%s: done %d times, refused %d times (%.100s); %d of %d light requests failed; %d MiB; normal after %v", a.name, res.outcome.Done, res.outcome.Refused,
				res.outcome.Error, res.attacked.failed, res.attacked.requests, res.peak>>20, cluster.Round(res.normalAfter))
			if len(res.ended) > 0 {
				t.Log(r.c.Tails(20))
				break
			}
		}
		r.close()
		cancel()
	}
}

// TestJudge holds each of the table's wants against a result that does not have it.
func TestJudge(t *testing.T) {
	calm := figures{p50: time.Millisecond, p99: time.Millisecond, worst: time.Millisecond, requests: 10}
	slow := calm
	slow.worst = 2 * time.Second
	slowFresh := calm
	slowFresh.worstFresh = 2 * time.Second
	failing := calm
	failing.failed = 1
	for want, res := range map[string]*result{
		"":                                  {attacked: calm, rest: calm, peak: 400 << 20},
		"m1 ended":                          {attacked: calm, rest: calm, ended: []string{"m1 ended (exit status 2)"}},
		"memory 401 MiB":                    {attacked: calm, rest: calm, peak: 401 << 20},
		"waited 2s on the attacked member":  {attacked: slow, rest: calm},
		"waited 2s on the others":           {attacked: calm, rest: slowFresh},
		"failed on the others":              {attacked: calm, rest: failing},
		"not normal within a minute":        {attacked: calm, rest: calm, normalAfter: -1},
		"normal after 11s only":             {attacked: calm, rest: calm, normalAfter: 11 * time.Second},
		"what the row wants besides is not": {attacked: calm, rest: calm},
	} {
		r := &run{settings: settings{normalWithin: 10 * time.Second}}
		if strings.HasPrefix(want, "what") {
			r.verify = func(context.Context, *run) []string { return []string{want} }
		}
		r.judge(t.Context(), res)
		if text := strings.Join(res.faults, "; "); !strings.Contains(text, want) || want == "" && text != "" || len(res.faults) > 1 {
			t.Errorf("%q: %q", want, text)
		}
	}
}
