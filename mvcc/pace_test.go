package mvcc

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// counted is a Pacer that adds up, and ends a walk that goes on after more than most keys.
type counted struct {
	context.Context
	keys, bytes int64
	most        int64 // 0: no end
}

var errEnough = errors.New("enough")

func (c *counted) Pace(keys, bytes int64) error {
	if keys > paceKeys {
		return fmt.Errorf("%d keys between two questions", keys)
	}
	c.keys += keys
	c.bytes += bytes
	if c.most > 0 && c.keys > c.most {
		return errEnough
	}
	return nil
}

// TestWalksAskTheirPacer: every way to go over many keys asks, also where nothing is found, and
// ends with the answer.
func TestWalksAskTheirPacer(t *testing.T) {
	const keys, valueBytes = 10_000, 300
	r := newRig(t, Options{CompactionSleep: -1})
	for from := 0; from < keys; from += 1000 {
		var c command
		for i := range 1000 {
			c.ops = append(c.ops, op{key: fmt.Sprintf("live/%05d", from+i), value: string(make([]byte, valueBytes))})
		}
		gone := command{}
		for i := range 1000 {
			gone.ops = append(gone.ops, op{key: fmt.Sprintf("gone/%05d", from+i), value: "x"})
		}
		r.apply(c, gone)
	}
	const early = 3
	r.apply(command{ops: []op{{key: "gone/", end: "gone0", del: true}}})
	r.flush()
	r.keyCounts.mu.Lock()
	r.keyCounts.logFrom = r.Revision() // so that early is not known without a walk
	r.keyCounts.mu.Unlock()
	view := r.View()
	defer view.Close()
	over := func(rd interface {
		Range(context.Context, []byte, []byte, RangeOptions) (RangeResult, error)
	}, from, to string, o RangeOptions) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			_, err := rd.Range(ctx, []byte(from), []byte(to), o)
			return err
		}
	}
	for _, c := range []struct {
		name  string
		walk  func(ctx context.Context) error
		keys  int64 // at least
		bytes int64
	}{
		{"range", over(r, "live/", "live0", RangeOptions{}), keys, keys * valueBytes},
		{"keys only", over(r, "live/", "live0", RangeOptions{KeysOnly: true}), keys, keys * valueBytes},
		{"of a view", over(view, "live/", "live0", RangeOptions{}), keys, keys * valueBytes},
		{"count of an old revision", over(r, "a", "z", RangeOptions{Rev: early, CountOnly: true}), keys, 0},
		{"limited range of an old revision", over(r, "a", "z", RangeOptions{Rev: early, Limit: 1}), keys, 0},
		{"deleted keys", over(r, "gone/", "gone0", RangeOptions{}), keys, 0},
		{"HashState", func(ctx context.Context) error {
			_, _, _, err := r.HashState(ctx, 0)
			return err
		}, 3 * keys, keys * valueBytes},
		{"Hash", func(ctx context.Context) error {
			_, _, err := r.Hash(ctx)
			return err
		}, 3 * keys, keys * valueBytes},
		{"Revisions", func(ctx context.Context) error {
			return view.Revisions(ctx, func(int64, int64, bool, []byte) error { return nil })
		}, 3 * keys, keys * valueBytes},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &counted{Context: t.Context()}
			if err := c.walk(p); err != nil {
				t.Fatal(err)
			}
			// The rest after the last question is not told.
			if p.keys <= c.keys-paceKeys || p.bytes < c.bytes-paceBytes-valueBytes {
				t.Errorf("asked after %d keys, %d bytes; it went over %d, %d", p.keys, p.bytes, c.keys, c.bytes)
			}
			p = &counted{Context: t.Context(), most: 4000}
			if err := c.walk(p); !errors.Is(err, errEnough) {
				t.Errorf("%v", err)
			}
			if p.keys > 4000+paceKeys {
				t.Errorf("it went on to %d keys", p.keys)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := c.walk(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("nobody waits for it: %v", err)
			}
		})
	}
}
