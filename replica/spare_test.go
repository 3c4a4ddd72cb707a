package replica

import (
	"fmt"
	"slices"
	"testing"
)

func TestOthersDecide(t *testing.T) {
	for _, c := range []struct {
		voters, active []uint64
		want           bool
	}{
		{nil, nil, false},
		{[]uint64{1}, nil, false},
		{[]uint64{1, 2}, []uint64{2}, false}, // this one is needed
		{[]uint64{1, 2, 3}, []uint64{1, 2}, false},
		{[]uint64{1, 2, 3}, []uint64{2, 3}, true},
		{[]uint64{1, 2, 3, 4}, []uint64{2, 3}, false},
		{[]uint64{1, 2, 3, 4}, []uint64{2, 3, 4}, true},
		{[]uint64{2, 3, 4}, []uint64{2, 3}, true},        // this one is a learner
		{[]uint64{1, 2, 3}, []uint64{2, 7, 8, 9}, false}, // those are
	} {
		t.Run(fmt.Sprint(c.voters, c.active), func(t *testing.T) {
			if got := OthersDecide(1, c.voters, func(id uint64) bool { return slices.Contains(c.active, id) }); got != c.want {
				t.Errorf("%v", got)
			}
		})
	}
}
