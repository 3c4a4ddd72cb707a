package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/replica"
)

// publisher tells the cluster this member's name and client URLs, by an entry,
// until that has succeeded once.
type publisher struct {
	memberID, clusterID uint64
	name                string
	clientURLs          []string
	log                 *proposals
	timeout             time.Duration // of a proposal
	pause               time.Duration // between two proposals, at least
	logger              *zap.Logger
	done                chan struct{} // closed once it has succeeded
}

func (p *publisher) run(ctx context.Context) {
	attributes := &membershippb.Attributes{Name: p.name, ClientUrls: p.clientURLs}
	fields := []zap.Field{
		zap.String("local-member-id", command.IDText(p.memberID)),
		zap.String("local-member-attributes", fmt.Sprintf("{Name:%s ClientURLs:%v}", p.name, p.clientURLs)),
		zap.Duration("publish-timeout", p.timeout),
	}
	for {
		bounded, cancel := context.WithTimeout(ctx, p.timeout)
		_, err := p.log.own(bounded, kindClusterMemberAttrSet, &pb.InternalRaftRequest{
			ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{Member_ID: p.memberID, MemberAttributes: attributes},
		})
		cancel()
		switch {
		case err == nil:
			close(p.done)
			p.logger.Info("published local member to cluster through raft", append(fields, zap.String("cluster-id", command.IDText(p.clusterID)))...)
			return
		case ctx.Err() != nil || errors.Is(err, replica.ErrStopped):
			p.logger.Warn("stopped publish because server is stopping", fields...)
			return
		}
		p.logger.Warn("failed to publish local member to cluster through raft", append(fields, zap.Error(err))...)
		// Nearly all failures have taken the whole timeout. The others must not become a busy loop.
		select {
		case <-ctx.Done():
		case <-time.After(p.pause):
		}
	}
}
