package rolling

import (
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/doctor/live/livetest"
)

// TestLookAtAnotherCluster: a member that was started again on an empty directory, as a cluster of its
// own, has its old id, which comes from its URLs. It was taken for the member, and would have been
// moved with data that is not the cluster's.
func TestLookAtAnotherCluster(t *testing.T) {
	whole, alone := livetest.TwoClusters(t)
	for _, endpoints := range [][]string{{whole}, {whole, alone}} {
		cfg := &clientv3.Config{Endpoints: []string{whole}}
		l, err := newLooker(t.Context(), cfg, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		l.cfg.Endpoints = endpoints // those that are asked; who the members are is asked of the first
		c, err := l.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m := c.Members[0]; m.Status == nil || m.Err != nil {
			t.Errorf("%v: m1: %+v", endpoints, m)
		}
		if m := c.Members[1]; m.Status != nil || m.Err == nil || !strings.Contains(m.Err.Error(), "a member of another cluster answers: 2 of cluster 8") {
			t.Errorf("%v: m2: %+v", endpoints, m)
		}
	}
}
