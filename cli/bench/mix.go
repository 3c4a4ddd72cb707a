package bench

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/bench/load"
)

const (
	mixDigits = 8   // of the number in a key
	mixPage   = 500 // keys of a page of a list, as Kubernetes' clients ask for
	mixTTL    = 600 // seconds, of the lease that keys of a mix hang on
	fillTxn   = 100 // keys of a transaction that fills
)

// A part is one kind of operations of a mix.
type part struct {
	name   string
	share  int // of all operations, in percent
	method string
	// message makes a request; number are the digits in its keys. nil: a keepalive of the lease.
	message func(number, value []byte, lease int64) proto.Message
}

// A mix is what clients of one kind do to a cluster.
type mix struct {
	about   string
	valSize int
	parts   []part
	fill    []string // keys that are written first, with %s for the number
	watched []string // prefixes, each watched by each of watchers
	// watchers is how many watch each of them; prevKV: they want the value before.
	watchers int
	prevKV   bool
}

func ifThere(key []byte, there bool) *pb.Compare {
	result := pb.Compare_EQUAL
	if there {
		result = pb.Compare_GREATER
	}
	return &pb.Compare{Key: key, Target: pb.Compare_MOD, Result: result, TargetUnion: &pb.Compare_ModRevision{ModRevision: 0}}
}

// guarded is a transaction of the form that Kubernetes' storage sends: a comparison of the key's
// revision, an operation, and a read if the comparison fails.
func guarded(key []byte, there bool, op *pb.RequestOp) *pb.TxnRequest {
	return &pb.TxnRequest{Compare: []*pb.Compare{ifThere(key, there)}, Success: []*pb.RequestOp{op},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}}}
}

func putOp(key, value []byte, lease int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value, Lease: lease}}}
}

func deleteOp(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}
}

// keyOf puts a number into a key.
func keyOf(form string, number []byte) []byte {
	before, after, _ := strings.Cut(form, "%s")
	return slices.Concat([]byte(before), number, []byte(after))
}

func mixes() map[string]mix {
	const (
		pod, event     = "/registry/pods/default/pod-%s", "/registry/events/default/event-%s"
		scope, service = "/service/cluster-%s/", "/services/service-%s/"
	)
	// all is the range of everything below a prefix that ends in a slash.
	all := func(form string, number []byte, serializable bool) *pb.RangeRequest {
		key := keyOf(form, number)
		return &pb.RangeRequest{Key: key, RangeEnd: append(slices.Clone(key[:len(key)-1]), '/'+1), Serializable: serializable}
	}
	return map[string]mix{
		"kubernetes": {
			about:   "API servers: updates of objects of 1 KiB guarded by their revision, events made with a lease and deleted, reads of one object, lists by pages of 500; 6 watchers with the value before",
			valSize: 1 << 10, fill: []string{pod}, watched: []string{"/registry/pods/", "/registry/events/"}, watchers: 3, prevKV: true,
			parts: []part{
				{"update", 50, load.MethodTxn, func(n, v []byte, _ int64) proto.Message {
					return guarded(keyOf(pod, n), true, putOp(keyOf(pod, n), v, 0))
				}},
				{"create", 10, load.MethodTxn, func(n, v []byte, lease int64) proto.Message {
					return guarded(keyOf(event, n), false, putOp(keyOf(event, n), v, lease))
				}},
				{"delete", 10, load.MethodTxn, func(n, _ []byte, _ int64) proto.Message {
					return guarded(keyOf(event, n), true, deleteOp(keyOf(event, n)))
				}},
				{"get", 20, load.MethodRange, func(n, _ []byte, _ int64) proto.Message { return &pb.RangeRequest{Key: keyOf(pod, n)} }},
				{"list", 10, load.MethodRange, func(n, _ []byte, _ int64) proto.Message {
					return &pb.RangeRequest{Key: keyOf(pod, n), RangeEnd: []byte("/registry/pods0"), Limit: mixPage}
				}},
			},
		},
		"patroni": {
			about:   "PostgreSQL clusters: each turn reads all of a cluster's keys, writes a member's state of 300 bytes with a lease and keeps that alive; now and then the leader's key is written if it is there; 1 watcher",
			valSize: 300, fill: []string{scope + "leader", scope + "members/a", scope + "members/b", scope + "config"}, watched: []string{"/service/"}, watchers: 1,
			parts: []part{
				{"read", 40, load.MethodRange, func(n, _ []byte, _ int64) proto.Message { return all(scope, n, false) }},
				{"member", 35, load.MethodPut, func(n, v []byte, lease int64) proto.Message {
					return &pb.PutRequest{Key: keyOf(scope+"members/a", n), Value: v, Lease: lease}
				}},
				{"leader", 5, load.MethodTxn, func(n, v []byte, _ int64) proto.Message {
					return guarded(keyOf(scope+"leader", n), true, putOp(keyOf(scope+"leader", n), v, 0))
				}},
				{"keepalive", 20, load.MethodKeepAlive, nil},
			},
		},
		"discovery": {
			about:   "service discovery: instances keep their leases alive, clients look services up (serializable ranges), instances of 200 bytes come and go; 20 watchers",
			valSize: 200, fill: []string{service + "a", service + "b", service + "c"}, watched: []string{"/services/"}, watchers: 20,
			parts: []part{
				{"keepalive", 60, load.MethodKeepAlive, nil},
				{"lookup", 30, load.MethodRange, func(n, _ []byte, _ int64) proto.Message { return all(service, n, true) }},
				{"register", 8, load.MethodPut, func(n, v []byte, lease int64) proto.Message {
					return &pb.PutRequest{Key: keyOf(service+"d", n), Value: v, Lease: lease}
				}},
				{"deregister", 2, load.MethodDelete, func(n, _ []byte, _ int64) proto.Message { return &pb.DeleteRangeRequest{Key: keyOf(service+"d", n)} }},
			},
		},
	}
}

func (b *bench) mixCommand() *cobra.Command {
	var l loop
	var name string
	var space int
	names := strings.Join(slices.Sorted(maps.Keys(mixes())), ", ")
	long := "Benchmark a mix of operations, with watchers beside them:\n"
	for _, name := range slices.Sorted(maps.Keys(mixes())) {
		m := mixes()[name]
		var shares []string
		for _, p := range m.parts {
			shares = append(shares, fmt.Sprintf("%s %d %%", p.name, p.share))
		}
		long += fmt.Sprintf("\n%s: %s.\n  %s\n", name, m.about, strings.Join(shares, ", "))
	}
	cmd := &cobra.Command{Use: "mix", Short: "Benchmark a mix of operations, as Kubernetes, Patroni or service discovery send them", Long: long, Args: cobra.NoArgs}
	fs := cmd.Flags()
	l.register(fs, "operations")
	fs.StringVar(&name, "mix", "kubernetes", "which: "+names)
	fs.IntVar(&space, "key-space-size", 1000, "how many objects, clusters or services; they are written first")
	values := valSizes(fs, 0)
	_ = cmd.RegisterFlagCompletionFunc("mix", cobra.FixedCompletions(slices.Sorted(maps.Keys(mixes())), cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	cmd.RunE = b.runs(func(*cobra.Command, []string) (*task, error) {
		o, err := l.options(b, fs)
		if err = cmp.Or(err, atLeast(1, "key-space-size", space)); err != nil {
			return nil, err
		}
		m, ok := mixes()[name]
		if !ok {
			return nil, usagef("--mix=%s: give one of %s", name, names)
		}
		sizes := []int(*values)
		if !fs.Changed("val-size") {
			sizes = []int{m.valSize}
		}
		return &task{sizes: sizes, run: func(ctx context.Context, t *target, valSize int) (*outcome, error) {
			return b.mix(ctx, o, t, name, m, space, valSize)
		}}, nil
	})
	return cmd
}

// numbers are the digits of n.
func numbers(to []byte, n int) {
	const digits = "0123456789abcdef"
	for i := len(to) - 1; i >= 0; i-- {
		to[i] = digits[n&0xf]
		n >>= 4
	}
}

func (b *bench) mix(parent context.Context, o load.Options, t *target, name string, m mix, space, valSize int) (*outcome, error) {
	ctx, stop := context.WithCancel(parent)
	defer stop()
	value := randomBytes(valSize)
	if err := m.prepare(ctx, t.client(0), space, value); err != nil {
		return nil, fmt.Errorf("writing the keys of the mix: %s", describe(err))
	}
	grant, err := t.client(0).Grant(ctx, mixTTL)
	if err != nil {
		return nil, fmt.Errorf("the mix gets no lease: %s", describe(err))
	}
	lease := int64(grant.ID)
	templates := make([]*load.Template, len(m.parts))
	for i, p := range m.parts {
		if p.message == nil {
			continue
		}
		if templates[i], err = load.NewTemplate(mixDigits, func(number []byte) proto.Message { return p.message(number, value, lease) }); err != nil {
			return nil, err
		}
	}
	events, watching, err := m.watch(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("a watcher of the mix: %s", describe(err))
	}
	for _, p := range m.parts {
		o.Classes = append(o.Classes, p.name)
	}
	alive, err := load.Encode(&pb.LeaseKeepAliveRequest{ID: lease})
	if err != nil {
		return nil, err
	}
	r, err := b.load(ctx, o, t, func(i int) (load.Operation, error) { return m.client(t.conn(i), templates, alive, space), nil })
	if err != nil {
		return nil, err
	}
	stop()
	watching.Wait()
	out := outcomeOf(r)
	out.interrupted = parent.Err() != nil
	whole := &load.Class{Name: name, Counts: r.Whole(), Seconds: r.Seconds}
	out.sections = []section{{name: name, class: whole, elapsed: r.Elapsed}}
	for _, c := range r.Classes {
		out.more = append(out.more, section{name: c.Name, class: c, elapsed: r.Elapsed})
	}
	out.trailer = fmt.Sprintf("\nWatchers:\t%d, which got %d events.\n", len(m.watched)*m.watchers, events.Load())
	return out, nil
}

// client is one client's operation: of a kind by its share, on a number by chance.
func (m mix) client(conn *grpc.ClientConn, templates []*load.Template, alive []byte, space int) load.Operation {
	requests := make([]*load.Request, len(templates))
	for i, template := range templates {
		if template != nil {
			requests[i] = template.Request()
		}
	}
	return func(ctx context.Context, _ int64) (int, error) {
		kind, at := 0, rand.IntN(100)
		for at -= m.parts[0].share; at >= 0 && kind < len(m.parts)-1; at -= m.parts[kind].share {
			kind++
		}
		request := requests[kind]
		if request == nil {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := conn.NewStream(ctx, bidi, load.MethodKeepAlive, load.Raw())
			if err != nil {
				return kind, err
			}
			return kind, exchange(stream, alive)
		}
		n := rand.IntN(space)
		for i := range templates[kind].Keys() {
			numbers(request.Key(i), n)
		}
		return kind, invoke(ctx, conn, m.parts[kind].method, request)
	}
}

// prepare writes the keys that reads and updates find.
func (m mix) prepare(ctx context.Context, c *clientv3.Client, space int, value []byte) error {
	var ops []clientv3.Op
	bytes := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := c.Txn(ctx).Then(ops...).Commit()
		ops, bytes = nil, 0
		return err
	}
	number := make([]byte, mixDigits)
	for n := range space {
		numbers(number, n)
		for _, form := range m.fill {
			ops = append(ops, clientv3.OpPut(string(keyOf(form, number)), string(value)))
			if bytes += len(value); len(ops) == fillTxn || bytes >= 512<<10 {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// watch begins the mix's watchers and counts their events until ctx ends.
func (m mix) watch(ctx context.Context, t *target) (*atomic.Int64, *sync.WaitGroup, error) {
	var events atomic.Int64
	var wg sync.WaitGroup
	for i := range m.watchers {
		s, err := t.watchStream(ctx, i)
		if err != nil {
			return nil, nil, err
		}
		for _, prefix := range m.watched {
			if err := s.create(&pb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)), PrevKv: m.prevKV}); err != nil {
				return nil, nil, err
			}
		}
		wg.Go(func() {
			for {
				a, err := s.recv(nil)
				if err != nil {
					return // the run ends, or the member has; then requests fail, too, and are counted
				}
				events.Add(int64(a.Events))
			}
		})
	}
	return &events, &wg, nil
}
