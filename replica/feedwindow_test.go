package replica

import "testing"

// fill sends messages of a size until the window is full, beginning behind entry last, and returns
// the last one.
func (w *feedWindow) fill(last uint64, bytes int64) uint64 {
	for !w.full() {
		last++
		w.sent(last, bytes)
	}
	return last
}

func TestFeedWindow(t *testing.T) {
	w := newFeedWindow()
	var last uint64
	lose := func() {
		w.lost()
		w.begin()
	}
	check := func(what string, bound, size int64) {
		t.Helper()
		if w.bound != bound || w.size != size {
			t.Errorf("%s: bound %d, size %d, want %d and %d", what, w.bound, w.size, bound, size)
		}
	}
	const message = maxMessageBytes

	w.begin()
	check("at the beginning", mostFed, message)
	for size := int64(message); size < mostFed; size *= 2 { // slow start
		check("acknowledged before", mostFed, size)
		if last = w.fill(last, message); w.bytes != size {
			t.Errorf("%d bytes are on their way, want %d", w.bytes, size)
		}
		w.matched(last)
		if !w.empty() || w.bytes != 0 {
			t.Errorf("%d bytes are on their way, and all are acknowledged", w.bytes)
		}
	}
	check("all is acknowledged", mostFed, mostFed)

	last = w.fill(last, message)
	w.matched(last - 4) // the others are lost
	if w.full() || w.bytes != 4*message {
		t.Errorf("%d bytes are on their way", w.bytes)
	}
	last = w.fill(last, message)
	lose()
	check("a window was lost", mostFed/2, message)
	last = w.fill(last, message)
	lose()
	check("one message was lost", message, message) // no less than one

	// After two losses it takes two windows to double, and no longer by the time the usual one is back.
	for bound := int64(message); bound < mostFed; bound *= 2 {
		for acknowledged := int64(0); acknowledged < 2*bound; acknowledged += message {
			if w.bound != bound || w.size > bound {
				t.Fatalf("bound %d, size %d after %d acknowledged bytes of a bound of %d", w.bound, w.size, acknowledged, bound)
			}
			last++
			w.sent(last, message)
			w.matched(last)
		}
	}
	if w.bound != mostFed || w.losses != 0 {
		t.Errorf("bound %d, %d losses", w.bound, w.losses)
	}
}

// A follower drops what is beyond its own bound, whatever the window: losses, each of which takes
// seconds to find out, become rare, and the window stays about as large as the follower allows.
func TestFeedWindowOfSmallFollower(t *testing.T) {
	w := newFeedWindow()
	const message, takes, total = 256 << 10, 5 << 20, 4 << 30
	var last uint64
	var fed, losses int64
	w.begin()
	for fed < total {
		sent := last
		last = w.fill(last, message)
		if taken := sent + takes/message; last > taken {
			w.matched(taken)
			fed += takes
			last = taken
			losses++
			w.lost()
			w.begin()
			continue
		}
		fed += int64(last-sent) * message
		w.matched(last)
	}
	if losses < 2 || losses > 20 {
		t.Errorf("%d losses", losses)
	}
	if w.bound < takes/4 {
		t.Errorf("the bound is %d at the end", w.bound)
	}
}

// However many losses there were, it goes on to grow.
func TestFeedWindowGrowsInTheEnd(t *testing.T) {
	w := newFeedWindow()
	w.begin()
	var last uint64
	for range 100 {
		last = w.fill(last, maxMessageBytes)
		w.lost()
		w.begin()
	}
	for i := 0; w.bound < mostFed; i++ {
		if i > 4<<10 {
			t.Fatalf("the bound is %d", w.bound)
		}
		last++
		w.sent(last, maxMessageBytes)
		w.matched(last)
	}
}
