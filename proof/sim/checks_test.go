package sim

import (
	"fmt"
	"math"
	"net/http/httptest"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func newRecorder() *httptest.ResponseRecorder { return httptest.NewRecorder() }

// oracle is what the members applied: one sequence of events, or there is a violation.
type oracle struct {
	w       *world
	mu      sync.Mutex
	revs    map[int64]*revision
	newest  int64
	checked int // revisions that a second member applied alike
}

type revision struct {
	text   string
	events []event
	at     time.Duration // when the first member applied it
	by     string
}

type event struct {
	key, value string
	deleted    bool
	sum        string
}

func (o *oracle) init(w *world) { o.w, o.revs = w, map[int64]*revision{} }

func (o *oracle) saw(l *life, rev int64, events []*mvccpb.Event) {
	x := &revision{by: l.name, at: o.w.now()}
	var text strings.Builder
	for _, ev := range events {
		e := event{key: string(ev.Kv.Key), value: idOf(ev.Kv.Value), deleted: ev.Type == mvccpb.Event_DELETE, sum: eventText(ev)}
		x.events = append(x.events, e)
		text.WriteString(e.sum + "\n")
	}
	x.text = text.String()
	o.mu.Lock()
	defer o.mu.Unlock()
	if was, ok := o.revs[rev]; ok {
		o.checked++
		if was.text != x.text {
			o.w.violation(diverged, "revision %d is\n%s  at member %s but\n%s  at member %s", rev, x.text, l.name, was.text, was.by)
		}
		return
	}
	if rev > o.newest+1 && o.newest > 0 {
		o.w.violation(gap, "member %s applies revision %d, nobody has applied %d", l.name, rev, o.newest+1)
	}
	o.revs[rev] = x
	o.newest = max(o.newest, rev)
}

func (o *oracle) last() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.newest
}

// version is a value of a key from a revision on; "" is the absent key.
type version struct {
	rev   int64
	value string
}

// judge compares the clients' answers with the oracle. REQUIRES: no goroutine of the world runs any
// more.
func (w *world) judge() {
	o := &w.oracle
	versions := map[string][]version{}
	written := map[string][]int64{} // value -> revisions
	deleted := map[string]time.Duration{}
	for rev := int64(2); rev <= o.newest; rev++ {
		x := o.revs[rev]
		if x == nil {
			w.violation(gap, "nobody has applied revision %d", rev)
			return
		}
		for _, e := range x.events {
			versions[e.key] = append(versions[e.key], version{rev, e.value})
			if !e.deleted {
				if at := written[e.value]; len(at) == 0 || at[len(at)-1] != rev {
					written[e.value] = append(at, rev)
				}
			} else if strings.HasPrefix(e.key, "lease/") {
				deleted[e.key] = x.at
			}
		}
	}
	valueAt := func(key string, rev int64) string {
		vs := versions[key]
		i := sort.Search(len(vs), func(i int) bool { return vs[i].rev > rev })
		if i == 0 {
			return ""
		}
		return vs[i-1].value
	}

	ops := slices.Clone(w.history.ops)
	for _, x := range ops {
		at := written[x.id]
		writes := x.kind == opPut || x.kind == opDelete || x.kind == opMulti || x.kind == opCAS && x.hit
		switch {
		case len(at) > 1:
			w.violation(doubledWrite, "done %d times: %s", len(at), x)
		case x.unknown && x.never && len(at) > 0:
			w.violation(ghostWrite, "told that it was never proposed, but it is at revision %d: %s", at[0], x)
		case x.unknown:
		case writes && (len(at) != 1 || at[0] != x.rev):
			w.violation(lostWrite, "acknowledged, but found at revisions %v: %s", at, x)
		case !writes && len(at) > 0:
			w.violation(ghostWrite, "told that it did not write, but found at %v: %s", at, x)
		case x.kind == opGet, x.kind == opCAS && !x.hit:
			if v := valueAt(x.key, x.rev); v != x.read {
				w.violation(wrongRead, "the value at that revision is %q: %s", v, x)
			}
			if x.kind == opCAS && x.read == x.old {
				w.violation(wrongRead, "refused although it had the value: %s", x)
			}
		case x.kind == opCAS:
			if v := valueAt(x.key, x.rev-1); v != x.old {
				w.violation(wrongRead, "done although the value was %q: %s", v, x)
			}
		case x.kind == opDelete:
			if v := valueAt(x.key, x.rev-1); (v != "") != x.hit {
				w.violation(wrongRead, "the value before was %q: %s", v, x)
			}
		}
		if x.unknown && len(at) == 1 {
			x.rev = at[0]
		}
	}

	// Real time: whatever began later is at a later revision, or at the same if
	// it does not write. Serializable reads only go forward at one member.
	type edge struct {
		at   int64
		call bool
		op   *op
	}
	var edges []edge
	for _, x := range ops {
		edges = append(edges, edge{x.call, true, x})
		if !x.unknown {
			edges = append(edges, edge{x.ret, false, x})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return int(a.at - b.at) })
	var newest *op
	atLife := map[string]*op{}
	for _, e := range edges {
		x := e.op
		switch {
		case e.call && !x.serializable:
			if newest != nil && x.rev != 0 {
				writes := len(written[x.id]) > 0
				if x.rev < newest.rev || writes && x.rev == newest.rev {
					w.violation(staleRead, "saw revision %d: %s\n    although before it began this had ended: %s", x.rev, x, newest)
				}
			}
		case e.call:
			if was := atLife[x.life]; was != nil && x.rev != 0 && x.rev < was.rev {
				w.violation(staleRead, "went back at one member: %s\n    after %s", x, was)
			}
		case !x.serializable:
			if newest == nil || x.rev > newest.rev {
				newest = x
			}
			fallthrough
		default:
			if was := atLife[x.life]; was == nil || x.rev > was.rev {
				atLife[x.life] = x
			}
		}
	}

	w.judgeWatchers(versions)
	for _, x := range w.history.leases {
		if at, ok := deleted[x.key]; ok && !x.revoked && at < x.renewed+time.Duration(x.ttl)*time.Second {
			w.violation(earlyExpiry, "lease %d (TTL %d s) ended %s after its last renewal, at %s", x.id, x.ttl, at-x.renewed, at)
		}
	}
	w.judgeRegisters(written)
}

func (w *world) judgeWatchers(versions map[string][]version) {
	for n, x := range w.history.watchers {
		i := 0
		lost := func(rev int64) bool {
			for _, g := range x.gaps {
				if rev >= g[0] && rev < g[1] {
					return true
				}
			}
			return false
		}
		wrong := false
	revs:
		for rev := max(2, x.start); rev <= min(w.oracle.newest, x.next-1); rev++ {
			for _, e := range w.oracle.revs[rev].events {
				if e.key != x.key && (x.end == "" || e.key < x.key || e.key >= x.end) {
					continue
				}
				if lost(rev) {
					continue
				}
				if i >= len(x.events) || x.events[i].sum != e.sum {
					got := "nothing"
					if i < len(x.events) {
						got = fmt.Sprintf("%s at member %s", x.events[i].sum, x.events[i].member)
					}
					w.violation(wrongWatch, "watcher %d should have got %s, got %s", n, e.sum, got)
					wrong = true
					break revs
				}
				w.judgePrevious(n, x, x.events[i], e, versions[e.key])
				i++
			}
		}
		if i < len(x.events) && !wrong {
			w.violation(wrongWatch, "watcher %d got %s, which it should not", n, x.events[i].sum)
		}
	}
}

func (w *world) judgePrevious(n int, x *watcher, got seenEvent, e event, vs []version) {
	if !x.prevKV || !got.hasPrevKey {
		return
	}
	i := sort.Search(len(vs), func(i int) bool { return vs[i].rev >= got.rev })
	if i == 0 || vs[i-1].rev != got.prev || vs[i-1].value != got.prevValue {
		w.violation(wrongWatch, "watcher %d got %s with a wrong previous value: of revision %d, %q", n, e.sum, got.prev, got.prevValue)
	}
}

// The registers once more, by porcupine, which does not get the revisions. For operations without
// an answer it learns only whether they took effect.

type registerOp struct {
	kind     opKind
	key      string
	old, new string
}

type registerAnswer struct {
	unknown bool
	value   string
	hit     bool
}

var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		byKey := map[string][]porcupine.Operation{}
		for _, x := range history {
			key := x.Input.(registerOp).key
			byKey[key] = append(byKey[key], x)
		}
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		was, in, out := state.(string), input.(registerOp), output.(registerAnswer)
		switch in.kind {
		case opGet:
			return out.value == was, was
		case opPut:
			return true, in.new
		case opDelete:
			return out.unknown || out.hit == (was != ""), ""
		}
		if out.hit != (was == in.old) {
			return false, was
		}
		if out.hit {
			return true, in.new
		}
		return out.value == was, was
	},
}

func (w *world) judgeRegisters(written map[string][]int64) {
	var all []porcupine.Operation
	for _, x := range w.history.ops {
		if x.serializable || x.unknown && len(written[x.id]) == 0 {
			continue
		}
		in := registerOp{kind: x.kind, key: x.key, old: x.old, new: x.id}
		out := registerAnswer{unknown: x.unknown, value: x.read, hit: x.hit || x.unknown}
		ret := x.ret
		if x.unknown {
			ret = math.MaxInt64
		}
		keys := []string{x.key}
		if x.kind == opMulti {
			in.kind = opPut
			keys = append(keys, x.second)
		}
		for _, key := range keys {
			in.key = key
			all = append(all, porcupine.Operation{ClientId: x.client, Input: in, Output: out, Call: x.call, Return: ret})
		}
	}
	switch porcupine.CheckOperationsTimeout(registers, all, 20*time.Second) {
	case porcupine.Illegal:
		w.violation(notLinear, "porcupine: a history of %d operations is not linearizable", len(all))
	case porcupine.Unknown:
		w.count("porcupine gave up")
	}
}
