package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/belaydb/belay/cli/bench/load"
)

// stmPlan are the flags of stm.
type stmPlan struct {
	isolation            string
	keys, perTxn, writes int
	locker               string
}

const (
	stmKeyBytes = 16
	stmLockName = "stmlock"
)

func isolations() map[string]concurrency.Isolation {
	return map[string]concurrency.Isolation{
		"c": concurrency.ReadCommitted, "r": concurrency.RepeatableReads, "s": concurrency.Serializable, "ss": concurrency.SerializableSnapshot,
	}
}

func lockers() map[string]lockMaker {
	return map[string]lockMaker{"stm": noLock, "lock-client": clientLock, "lock-rpc": serverLock}
}

func (b *bench) stmCommand() *cobra.Command {
	var l loop
	var p stmPlan
	cmd := &cobra.Command{Use: "stm", Short: "Benchmark STM", Args: cobra.NoArgs}
	fs := cmd.Flags()
	l.register(fs, "STM transactions")
	fs.StringVar(&p.isolation, "isolation", "r", "read committed (c), repeatable reads (r), serializable (s) or snapshot (ss)")
	fs.IntVar(&p.keys, "keys", 1, "how many different keys")
	fs.IntVar(&p.perTxn, "keys-per-txn", 1, "keys of a transaction")
	fs.IntVar(&p.writes, "txn-wr-percent", 50, "how many of them it writes, in percent")
	fs.StringVar(&p.locker, "stm-locker", "stm", "what a transaction is guarded by: nothing more (stm), a lock of the client's (lock-client), one of the server's (lock-rpc)")
	values := valSizes(fs, 8)
	cmd.RunE = b.runs(func(*cobra.Command, []string) (*task, error) {
		o, err := l.options(b, fs)
		if err = cmp.Or(err, p.validate()); err != nil {
			return nil, err
		}
		return &task{sizes: *values, run: func(ctx context.Context, t *target, valSize int) (*outcome, error) {
			return p.run(ctx, b, o, t, valSize)
		}}, nil
	})
	return cmd
}

func (p stmPlan) validate() error {
	if err := cmp.Or(atLeast(1, "keys", p.keys), atLeast(0, "keys-per-txn", p.perTxn), atLeast(0, "txn-wr-percent", p.writes)); err != nil {
		return err
	}
	if p.perTxn > p.keys {
		return usagef("--keys-per-txn=%d: give at most --keys, which is %d", p.perTxn, p.keys)
	}
	if p.writes > 100 {
		return usagef("--txn-wr-percent=%d: give 0 to 100", p.writes)
	}
	if _, ok := isolations()[p.isolation]; !ok {
		return usagef("--isolation=%s: give c (read committed), r (repeatable reads), s (serializable) or ss (snapshot)", p.isolation)
	}
	if _, ok := lockers()[p.locker]; !ok {
		return usagef("--stm-locker=%s: give %s", p.locker, strings.Join(slices.Sorted(maps.Keys(lockers())), ", "))
	}
	return nil
}

func (p stmPlan) run(ctx context.Context, b *bench, o load.Options, t *target, valSize int) (*outcome, error) {
	value := string(randomBytes(valSize))
	var locks []lock
	defer func() {
		for _, l := range locks {
			l.end()
		}
	}()
	return b.simple(ctx, o, t, "stm", "", func(i int) (load.Operation, error) {
		l, err := lockers()[p.locker](ctx, t, i)
		if err != nil {
			return nil, fmt.Errorf("--stm-locker=%s: client %d: %s", p.locker, i, describe(err))
		}
		locks = append(locks, l)
		return func(ctx context.Context, _ int64) (int, error) {
			keys := map[string]bool{}
			for len(keys) < p.perTxn {
				key := make([]byte, stmKeyBytes)
				binary.PutVarint(key, rand.Int64N(int64(p.keys)))
				keys[string(key)] = true
			}
			if err := l.lock(ctx); err != nil {
				return 0, err
			}
			_, err := concurrency.NewSTM(t.client(i), func(s concurrency.STM) error {
				writes := len(keys) * p.writes / 100
				for key := range keys {
					s.Get(key)
					if writes > 0 {
						s.Put(key, value)
						writes--
					}
				}
				return nil
			}, concurrency.WithIsolation(isolations()[p.isolation]), concurrency.WithAbortContext(ctx))
			if wrong := l.unlock(ctx); err == nil {
				err = wrong
			}
			return 0, err
		}, nil
	})
}

// A lock guards one client's transactions; end gives up what it holds.
type lock struct {
	lock, unlock func(context.Context) error
	end          func()
}

type lockMaker func(ctx context.Context, t *target, i int) (lock, error)

func noLock(context.Context, *target, int) (lock, error) {
	nothing := func(context.Context) error { return nil }
	return lock{nothing, nothing, func() {}}, nil
}

// session has a lease that lives until end.
func session(ctx context.Context, t *target, i int) (*concurrency.Session, func(), error) {
	// Its lease is revoked after the run's context has ended.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s, err := concurrency.NewSession(t.client(i), concurrency.WithContext(own))
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return s, func() {
		defer cancel()
		late := time.AfterFunc(answerWithin, cancel)
		defer late.Stop()
		_ = s.Close() // the lease ends by itself, if not now
	}, nil
}

func clientLock(ctx context.Context, t *target, i int) (lock, error) {
	s, end, err := session(ctx, t, i)
	if err != nil {
		return lock{}, err
	}
	m := concurrency.NewMutex(s, stmLockName)
	return lock{m.Lock, m.Unlock, end}, nil
}

// Fields of the lock service's messages.
const (
	lockName     = 1 // of a request to lock
	lockLease    = 2
	lockedKey    = 2 // of its answer
	unlockKey    = 1 // of a request to unlock
	methodLock   = "/v3lockpb.Lock/Lock"
	methodUnlock = "/v3lockpb.Lock/Unlock"
)

func serverLock(ctx context.Context, t *target, i int) (lock, error) {
	s, end, err := session(ctx, t, i)
	if err != nil {
		return lock{}, err
	}
	request := protowire.AppendTag(nil, lockName, protowire.BytesType)
	request = protowire.AppendString(request, stmLockName)
	request = protowire.AppendTag(request, lockLease, protowire.VarintType)
	request = protowire.AppendVarint(request, uint64(s.Lease()))
	var held []byte
	return lock{
		lock: func(ctx context.Context) error {
			var answer []byte
			if err := t.conn(i).Invoke(ctx, methodLock, request, &answer, load.Raw()); err != nil {
				return err
			}
			held = load.BytesField(answer, lockedKey)
			return nil
		},
		unlock: func(ctx context.Context) error {
			request := protowire.AppendTag(nil, unlockKey, protowire.BytesType)
			return t.conn(i).Invoke(ctx, methodUnlock, protowire.AppendBytes(request, held), nil, load.Raw())
		},
		end: end,
	}, nil
}
