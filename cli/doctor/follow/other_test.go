package follow

import (
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/doctor/live"
	"github.com/belaydb/belay/cli/doctor/live/livetest"
)

// TestOtherCluster: what a member of another cluster tells at a member's client URL, as one does that
// was started again on an empty directory, is not in the report.
func TestOtherCluster(t *testing.T) {
	t.Parallel()
	whole, _ := livetest.TwoClusters(t)
	a := NewAsker(live.Options{Client: &clientv3.Config{Endpoints: []string{whole}}, Timeout: time.Minute})
	defer a.Close()
	l := a.Look(t.Context())
	if len(l.Members) != 2 {
		t.Fatalf("%+v", l.Members)
	}
	if s := l.Members[0]; s.Err != "" || s.Leader != 1 {
		t.Errorf("m1: %+v", s)
	}
	if s := l.Members[1]; s.Leader != 0 || !strings.Contains(s.Err, "a member of another cluster answers there: 2 of cluster 8") {
		t.Errorf("m2: %+v", s)
	}
}
