package rolling

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// turnID is the lease whose holder may stop and start members.
	turnID = clientv3.LeaseID(0x62656c61796d76)
	// turnTTL is how long it outlives a run that was killed.
	turnTTL   = 10 * time.Second
	turnRenew = turnTTL / 4
)

// errOther is why a run ends, or does not begin.
var errOther = refuse("What to do: let it end, or end it with Ctrl-C; then run this again", "another util move --run is at work on this cluster")

// A turn is the right to stop and start members of a cluster, which one run has at a time. It is a
// lease with an ID that all runs know and that servers grant once: etcd's and Belay's members have
// it, so the machine of the run does not matter. It has no key, so no reader and no watch sees it, and
// no revision is spent.
//
// The way not taken: a file on the machine where the run is. Two people have two machines.
type turn struct {
	client  *clientv3.Client
	timeout time.Duration // of one request
	say     func(format string, args ...any)

	// renewed is when the lease was ours for certain: longer ago than its TTL, it may be another's.
	renewed time.Time
}

// take waits until the lease is ours. It returns errOther if somebody keeps it alive.
func (t *turn) take(ctx context.Context) error {
	least, said := int64(-1), false // of the seconds that it had left; -1: not asked yet
	for {
		began := time.Now()
		err := t.bounded(ctx, func(ctx context.Context) error {
			_, err := pb.NewLeaseClient(t.client.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(turnID), TTL: int64(turnTTL / time.Second)})
			return err
		})
		if !errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseExist) {
			t.renewed = began
			return err
		}
		var left int64
		if err := t.bounded(ctx, func(ctx context.Context) error {
			resp, err := t.client.TimeToLive(ctx, turnID)
			if err == nil {
				left = resp.TTL
			}
			return err
		}); err != nil {
			return err
		}
		switch {
		case left <= 0: // it has just expired
		case least >= 0 && left > least:
			return errOther
		default:
			least = left
		}
		if !said {
			said = true
			t.say("Another run of this is at work on the cluster, or was killed: that shows within %v", turnTTL)
		}
		if err := rest(ctx); err != nil {
			return err
		}
	}
}

// keep renews the lease until ctx ends. It returns errOther if another run has it by now, because
// this one was stopped or cut off for so long.
func (t *turn) keep(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(turnRenew):
		}
		// A renewal would succeed as well if the lease were another's.
		if began := time.Now(); began.Sub(t.renewed) < turnTTL {
			err := t.bounded(ctx, func(ctx context.Context) error { _, err := t.client.KeepAliveOnce(ctx, turnID); return err })
			if err == nil {
				t.renewed = began
			}
			if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				continue // no leader, or no answer: there is time
			}
		}
		if err := t.take(ctx); errors.Is(err, errOther) {
			return err
		}
	}
}

// leave gives the lease back, also when ctx has ended.
func (t *turn) leave(ctx context.Context) {
	_ = t.bounded(context.WithoutCancel(ctx), func(ctx context.Context) error { // it expires soon
		_, err := t.client.Revoke(ctx, turnID)
		return err
	})
}

func (t *turn) bounded(ctx context.Context, fn func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	return fn(ctx)
}

// alone calls fn while it is this run's turn. fn's context ends with errOther as its cause when it is
// not any more.
func (t *turn) alone(ctx context.Context, fn func(ctx context.Context) error) error {
	if err := t.take(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		if err := t.keep(ctx); err != nil {
			cancel(err)
		}
	}()
	err := fn(ctx)
	other := context.Cause(ctx)
	cancel(nil)
	<-kept
	if errors.Is(other, errOther) {
		return other
	}
	t.leave(ctx)
	return err
}
