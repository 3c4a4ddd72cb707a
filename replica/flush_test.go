package replica

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLogInMemoryIsForWhoIsBehind: while nobody is behind, an eighth of the log that is kept for
// followers is in memory, on every member, and less on a single one; for a follower that is away, all
// of it.
func TestLogInMemoryIsForWhoIsBehind(t *testing.T) {
	const keep = 64 << 10
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, size, func(c *testCluster) { c.keepBytes = keep })
				defer c.close()
				leader := c.leader()
				write := func() {
					for i := range 500 {
						leader.mustPut(fmt.Sprint("k", i), strings.Repeat("v", 500))
						if i%10 == 0 {
							time.Sleep(time.Second) // the loop's ticks look for who is behind
						}
					}
				}
				write()
				for _, m := range c.members {
					most := int64(keep / 2)
					if size == 1 {
						most = keep / 16
					}
					if held, _ := m.log.Bytes(); held >= most {
						t.Errorf("member %x keeps %d bytes of the log in memory, while nobody is behind", m.id, held)
					}
				}
				if size == 1 {
					return
				}
				away := c.others(leader)[0]
				c.partition(away.id, true)
				write()
				if held, _ := leader.log.Bytes(); held < keep/2 || held > 2*keep {
					t.Errorf("the leader keeps %d bytes of the log in memory for the member that is away", held)
				}
				c.partition(away.id, false)
				away.sameAs(leader)
				write()
				if held, _ := leader.log.Bytes(); held >= keep/2 {
					t.Errorf("the leader keeps %d bytes of the log in memory, when all have caught up", held)
				}
			})
		})
	}
}
