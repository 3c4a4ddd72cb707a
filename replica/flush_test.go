package replica

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belaydb/belay/command"
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

// keepsAny has large values stay in the log, where these tests look for none.
type keepsAny struct{}

func (keepsAny) Keep(command.Segment, string) error { return nil }
func (keepsAny) LeastEntry() int                    { return 1 << 10 }

// TestValuesInTheLogAreFlushedInTime: what a start has in memory, since the store lacks it, is bounded,
// although values that stay in the log leave memory before they are flushed; and the log in memory that
// a follower lacks has the store flushed earlier.
func TestValuesInTheLogAreFlushedInTime(t *testing.T) {
	const size, slack = 128 << 10, 512 << 10
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away=%v", away), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 3, bounded, func(c *testCluster) { c.keeper, c.keepBytes = keepsAny{}, 64<<10 })
				defer c.close()
				m := c.leader()
				if away {
					c.partition(c.others(m)[0].id, true)
				}
				most, lacks, flushes := int64(0), int64(0), 0
				for i, flushed := 0, uint64(0); i < 100; i++ {
					m.mustPut("k", strings.Repeat("v", size))
					if synctest.Wait(); !away {
						time.Sleep(50 * time.Millisecond) // a tick sees that nobody needs it
					}
					r := m.replica()
					if f := r.pub.flushed.Load(); f != flushed {
						flushed, flushes = f, flushes+1
					}
					most = max(most, m.memory())
					lacks = max(lacks, int64(r.pub.applied.Load()-r.pub.flushed.Load())*size)
				}
				if lacks > testBound/2+slack {
					t.Errorf("the store lacked %d bytes of the log; a start is to have at most half of %d in memory", lacks, testBound)
				}
				if most > testBound/4+slack {
					t.Errorf("%d bytes of the log were in memory", most)
				}
				if !away && flushes > 10 {
					t.Errorf("values that stay in the log had the store flushed %d times", flushes)
				}
				t.Logf("the store lacked at most %d bytes, %d were in memory, %d flushes", lacks, most, flushes)
			})
		})
	}
}
