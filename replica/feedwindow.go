package replica

// feedWindow decides how many bytes of a feed may be on their way to the follower. It begins with
// one message and grows with what is acknowledged, as in TCP's slow start: what follows a lost
// append is of no use. Its bound is mostFed. A loss, which the feed finds out after seconds, halves
// the bound: a follower with a small Config.MaxUnsyncedBytes drops what is beyond that, and as much
// again would be lost again. The bound doubles when as much has been acknowledged, so that a disk
// that has stalled once costs little; each further loss doubles how much it takes, so that where
// the follower is what bounds it, losses become rare. It belongs to the feed's goroutine.
type feedWindow struct {
	bound int64 // from one message to mostFed
	size  int64 // how many bytes may be on their way now; bound at most
	bytes int64 // on their way
	onWay []fedAppend

	acknowledged int64 // bytes, since bound was last changed
	losses       int   // since bound was last mostFed; mostLosses at most
}

// fedAppend is an append on its way: its last entry, and its size.
type fedAppend struct {
	last  uint64
	bytes int64
}

const (
	// mostFed bounds the bytes that are on their way to a follower, to one message.
	mostFed = 16 << 20
	// mostLosses is from where on a loss no longer makes the bound's growth slower: it doubles then
	// after 256 times as much has been acknowledged.
	mostLosses = 9
)

func newFeedWindow() feedWindow { return feedWindow{bound: mostFed} }

// begin is called when what follows is sent anew: nothing is on its way.
func (w *feedWindow) begin() {
	w.size, w.bytes, w.onWay = min(maxMessageBytes, w.bound), 0, nil
}

// full reports whether nothing more may be sent now.
func (w *feedWindow) full() bool { return w.bytes >= w.size }

// empty reports whether nothing is on its way.
func (w *feedWindow) empty() bool { return len(w.onWay) == 0 }

func (w *feedWindow) sent(last uint64, bytes int64) {
	w.bytes += bytes
	w.onWay = append(w.onWay, fedAppend{last, bytes})
}

// matched takes note that the follower has acknowledged entry match.
func (w *feedWindow) matched(match uint64) {
	for len(w.onWay) > 0 && w.onWay[0].last <= match {
		bytes := w.onWay[0].bytes
		w.onWay = w.onWay[1:]
		w.bytes -= bytes
		if w.bound < mostFed {
			if w.acknowledged += bytes; w.acknowledged >= w.bound<<(w.losses-1) {
				w.bound, w.acknowledged = min(2*w.bound, mostFed), 0
			}
			if w.bound == mostFed {
				w.losses = 0
			}
		}
		w.size = min(w.size+bytes, w.bound)
	}
}

// lost takes note that nothing of what is on its way is acknowledged any more.
func (w *feedWindow) lost() {
	w.bound, w.acknowledged = max(maxMessageBytes, min(w.bound, w.bytes/2)), 0
	w.losses = min(w.losses+1, mostLosses)
}
