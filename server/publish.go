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

// publish tells the cluster this member's name and client URLs, by an entry,
// until that has succeeded once.
func (s *Server) publish(ctx context.Context) {
	attributes := &membershippb.Attributes{Name: s.cfg.Name, ClientUrls: s.cfg.ClientURLs}
	fields := []zap.Field{
		zap.String("local-member-id", command.IDText(s.cfg.MemberID)),
		zap.String("local-member-attributes", fmt.Sprintf("{Name:%s ClientURLs:%v}", s.cfg.Name, s.cfg.ClientURLs)),
		zap.Duration("publish-timeout", s.cfg.RequestTimeout),
	}
	for {
		bounded, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
		_, err := s.proposeOwn(bounded, kindClusterMemberAttrSet, &pb.InternalRaftRequest{
			ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{Member_ID: s.cfg.MemberID, MemberAttributes: attributes},
		})
		cancel()
		switch {
		case err == nil:
			close(s.published)
			s.logger.Info("published local member to cluster through raft", append(fields, zap.String("cluster-id", command.IDText(s.cfg.ClusterID)))...)
			return
		case ctx.Err() != nil || errors.Is(err, replica.ErrStopped):
			s.logger.Warn("stopped publish because server is stopping", fields...)
			return
		}
		s.logger.Warn("failed to publish local member to cluster through raft", append(fields, zap.Error(err))...)
		// Nearly all failures have taken the whole timeout. The others must not
		// become a busy loop.
		select {
		case <-ctx.Done():
		case <-time.After(s.cfg.HeartbeatInterval):
		}
	}
}
