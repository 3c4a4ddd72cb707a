package lease

// heap is a binary min-heap of leases by the time at which each must be checked next. A lease is in
// it at most once and knows its place, so that a revoked lease can be removed at once.
//
// The time is a lower bound: a renewed lease keeps its old place until that time comes.
type heap struct {
	at    []int64 // parallel to items
	items []*entry
	place func(*entry) *int // where the entry keeps its index in this heap; -1: not in it
}

func (h *heap) len() int { return len(h.items) }

// set puts the lease at a time, whether it is in the heap or not.
func (h *heap) set(e *entry, at int64) {
	i := *h.place(e)
	if i < 0 {
		i = len(h.items)
		h.items = append(h.items, e)
		h.at = append(h.at, at)
		*h.place(e) = i
	} else {
		h.at[i] = at
	}
	if !h.down(i) {
		h.up(i)
	}
}

// remove takes the lease out, if it is in.
func (h *heap) remove(e *entry) {
	i := *h.place(e)
	if i < 0 {
		return
	}
	last := len(h.items) - 1
	h.swap(i, last)
	h.items[last] = nil
	h.items, h.at = h.items[:last], h.at[:last]
	*h.place(e) = -1
	if i < last && !h.down(i) {
		h.up(i)
	}
}

func (h *heap) clear() {
	for _, e := range h.items {
		*h.place(e) = -1
	}
	h.items, h.at = nil, nil
}

func (h *heap) swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.at[i], h.at[j] = h.at[j], h.at[i]
	*h.place(h.items[i]), *h.place(h.items[j]) = i, j
}

func (h *heap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h.at[parent] <= h.at[i] {
			return
		}
		h.swap(parent, i)
		i = parent
	}
}

func (h *heap) down(i int) (moved bool) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(h.items); child++ {
			if h.at[child] < h.at[least] {
				least = child
			}
		}
		if least == i {
			return moved
		}
		h.swap(i, least)
		i, moved = least, true
	}
}
