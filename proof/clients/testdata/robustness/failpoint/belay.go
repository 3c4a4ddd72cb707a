package failpoint

import (
	"context"
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"go.etcd.io/etcd/tests/v3/framework/e2e"
	"go.etcd.io/etcd/tests/v3/robustness/identity"
	"go.etcd.io/etcd/tests/v3/robustness/report"
	"go.etcd.io/etcd/tests/v3/robustness/traffic"
)

// onMember is a fault that needs nothing of the program; member is any of the cluster's.
type onMember struct {
	name   string
	inject func(ctx context.Context, clus *e2e.EtcdProcessCluster, member e2e.EtcdProcess) error
}

var (
	// A leader that wakes up does not know that another one was elected.
	PauseMember Failpoint = onMember{"PauseMember", func(ctx context.Context, _ *e2e.EtcdProcessCluster, member e2e.EtcdProcess) error {
		if err := member.Pause(); err != nil {
			return err
		}
		time.Sleep(3 * time.Second)
		return member.Resume()
	}}
	KillAll Failpoint = onMember{"KillAll", func(ctx context.Context, clus *e2e.EtcdProcessCluster, _ e2e.EtcdProcess) error {
		for _, member := range clus.Procs {
			if err := kill(ctx, member); err != nil {
				return err
			}
		}
		var g errgroup.Group
		for _, member := range clus.Procs {
			g.Go(func() error { return member.Start(ctx) })
		}
		return g.Wait()
	}}
	// A member that is killed again and again, in the midst of its start or soon after.
	KillOften Failpoint = onMember{"KillOften", func(ctx context.Context, _ *e2e.EtcdProcessCluster, member e2e.EtcdProcess) error {
		for range 5 {
			if err := kill(ctx, member); err != nil {
				return err
			}
			soon, cancel := context.WithTimeout(ctx, time.Duration(rand.Int63n(int64(time.Second))))
			_ = member.Start(soon) // it need not be ready yet
			cancel()
		}
		if err := kill(ctx, member); err != nil {
			return err
		}
		return member.Start(ctx)
	}}
	StopMember Failpoint = onMember{"StopMember", func(ctx context.Context, _ *e2e.EtcdProcessCluster, member e2e.EtcdProcess) error {
		return member.Restart(ctx)
	}}
)

func (f onMember) Inject(ctx context.Context, _ *testing.T, _ *zap.Logger, clus *e2e.EtcdProcessCluster, _ time.Time, _ identity.Provider) ([]report.ClientReport, error) {
	return nil, f.inject(ctx, clus, clus.Procs[rand.Int()%len(clus.Procs)])
}

func (f onMember) Name() string { return f.name }

func (f onMember) Available(e2e.EtcdProcessClusterConfig, e2e.EtcdProcess, traffic.Profile) bool {
	return true
}

func kill(ctx context.Context, member e2e.EtcdProcess) error {
	for member.IsRunning() {
		_ = member.Kill() // Wait tells
		if err := member.Wait(ctx); err != nil && !strings.Contains(err.Error(), "unexpected exit code") {
			return fmt.Errorf("kill %s: %w", member.Config().Name, err)
		}
	}
	return nil
}
