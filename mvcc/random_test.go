package mvcc

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "run the random tests with this seed alone")

// seeds returns the seeds of a random test, and prints how to repeat one.
func seeds(t *testing.T, n int) []uint64 {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	base := uint64(time.Now().UnixNano())
	out := make([]uint64, n)
	for i := range out {
		out[i] = base + uint64(i)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with: go test ./mvcc -run '^%s$' -seed <the number in the failed subtest's name>", t.Name())
		}
	})
	return out
}

// TestMetamorphic applies one random history in different cuts of batches, with restarts, flushes,
// compactions of the storage engine and snapshot transfers in between, with caches of different
// sizes. Every answer, every range at every revision, every event and every hash must equal the
// model's each time.
func TestMetamorphic(t *testing.T) {
	n := 12
	if testing.Short() {
		n = 3
	}
	for _, seed := range seeds(t, n) {
		t.Run(name(seed), func(t *testing.T) { metamorphic(t, seed) })
	}
}

func name(seed uint64) string { return time.Unix(0, int64(seed)).Format("150405") + "-" + itoa(seed) }

func itoa(n uint64) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(b[i:])
		}
	}
}

func metamorphic(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	cmds := randomCommands(rng, 60+rng.IntN(120))
	for variant := range 4 {
		rng := rand.New(rand.NewPCG(seed, uint64(2+variant)))
		opts := Options{CompactionBatchLimit: 1 + rng.IntN(20), CompactionSleep: -1, countBlockKeys: 1 + rng.IntN(4), hashParts: rng.IntN(12),
			wideDelete: rng.IntN(4), keepOverlay: rng.IntN(4)}
		if variant%2 == 1 {
			opts.CacheBytes = 1 // nothing stays
		}
		if rng.IntN(3) > 0 {
			opts.ExistsFilterBytes = (1 + rng.IntN(3)) * bloomBlockBytes // full at once, and built anew often
		}
		r := newRig(t, opts)
		if variant >= 2 {
			r.keepValues(rng)
		}
		m := newModel()
		for i := 0; i < len(cmds); {
			n := min(1+rng.IntN(1+rng.IntN(30)), len(cmds)-i)
			batch := cmds[i : i+n]
			i += n
			var want []outcome
			compacted := int64(-1)
			for _, c := range batch {
				before := m.compact
				want = append(want, m.apply(c))
				if m.compact != before {
					if compacted >= 0 {
						// The one before has not finished when this one is asked for: it leaves no
						// hash.
						m.hashes = m.hashes[:len(m.hashes)-1]
					}
					compacted = m.compact
				}
			}
			got := r.apply(batch...)
			for j := range want {
				if got[j] != want[j] {
					t.Fatalf("command %d %v:\n got %s\nwant %s", i-n+j, batch[j], got[j], want[j])
				}
			}
			if compacted >= 0 {
				<-r.Compacted(compacted)
			}
			switch rng.IntN(12) {
			case 0:
				r.flush()
				r.close()
				r.open()
				m.hashes = nil
			case 1:
				other := newRig(t, opts)
				other.do(op{key: "stale", value: "old content"})
				other.View().Close()
				r.apply(command{compact: 0}, command{compact: 0}) // move the index beyond the other's
				if m.compact < 0 {
					m.apply(command{compact: 0})
					<-r.Compacted(0)
				}
				r.send(other)
				if r.segments != nil && rng.IntN(2) == 0 {
					other.keepValues(rng)
				}
				r, m.hashes = other, nil
			case 2:
				r.flush()
			case 4:
				if err := r.MoveValues(t.Context()); err != nil {
					t.Fatal(err)
				}
				r.flush()
			case 3:
				if err := r.st.CompactAll(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if rng.IntN(4) == 0 {
				if rng.IntN(2) == 0 {
					<-r.keyCounts.ready // what is counted ahead takes part
				}
				r.check(m, rng)
			}
		}
		r.check(m, rng)
	}
}
