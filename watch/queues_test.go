package watch

import "testing"

// TestStreamsShareQueueBytes: the more streams, the less each may hold, to a least that always works.
func TestStreamsShareQueueBytes(t *testing.T) {
	o := Options{QueueBytes: 24 << 20}.withDefaults()
	for n, want := range map[int64]int64{0: 4 << 20, 1: 4 << 20, 6: 4 << 20, 12: 2 << 20, 768: 32 << 10, 100000: leastStreamBytes} {
		if got := o.streamBytes(n); got != want {
			t.Errorf("%d streams: each may hold %d bytes, want %d", n, got, want)
		}
	}
	o.QueueBytes = 0
	if got := o.streamBytes(100000); got != 4<<20 {
		t.Errorf("without a bound for all each may hold %d bytes", got)
	}
	h := NewHub(&fakeHistory{}, Options{QueueBytes: 2 << 20})
	defer h.Close()
	a, b := h.NewStream(), h.NewStream()
	if got := h.streamBytes.Load(); got != 1<<20 {
		t.Errorf("each of two streams may hold %d bytes", got)
	}
	a.Close()
	a.Close()
	if got := h.streamBytes.Load(); got != 2<<20 {
		t.Errorf("the one stream may hold %d bytes", got)
	}
	b.Close()
}
