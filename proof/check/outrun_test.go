package check

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// outrun writes, by calls of put with about 1 MB each, until the leader, of Belay, has nothing any
// more of the log that there is now: a member that has ended then needs a snapshot. A leader keeps
// its log for a while for a member that may be started again.
func outrun(ctx context.Context, t *testing.T, c *cluster.Cluster, put func() error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute) // some 50 MB, on a machine without CPU
	defer cancel()
	for last, start := 0.0, 1.0; ; {
		for _, m := range c.Members {
			text, err := getBody(ctx, m.ClientURL+"/metrics")
			if err != nil {
				continue // the one that has ended
			}
			families := parseScrape(t, text)
			last = max(last, start*sum(families, "etcd_server_proposals_committed_total"))
			if sum(families, "etcd_server_is_leader") == 1 && sum(families, "belay_log_first_index") > last {
				return nil
			}
		}
		start = 0
		if err := put(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("the leader keeps the log for a member that has ended")
		case <-time.After(100 * time.Millisecond):
		}
	}
}
