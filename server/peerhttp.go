package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

// RegisterPeers registers what the server answers on the peer port, in etcd's form.
func (s *Server) RegisterPeers(mux *peers.Mux) {
	mux.Handle(peers.PathMembers, http.MethodGet, peers.Anyone, s.serveMembers)
	mux.Handle(peers.PathPromote, http.MethodPost, peers.Members, s.servePromote)
	mux.Handle(peers.PathHashKV, http.MethodGet, peers.Anyone, s.serveHashKV)
	mux.Handle(peers.PathLeases, "", peers.Members, s.serveLease(s.answerRenew))
	mux.Handle(peers.PathLeasesInternal, "", peers.Members, s.serveLease(s.answerTimeToLive))
	mux.Handle(peers.PathDowngradeEnabled, http.MethodGet, peers.Anyone, s.serveDowngradeEnabled)
	mux.Handle(peers.PathVersion, http.MethodGet, peers.Anyone, s.serveVersion)
}

func (s *Server) serveMembers(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set(peers.HeaderCluster, command.IDText(s.cfg.ClusterID))
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(s.state.Members()); err != nil {
		s.logger.Warn("failed to encode membership members", zap.Error(err))
	}
}

// servePromote promotes a learner for a member that does not lead. It does not
// pass the question on: two members that each take the other for the leader
// would send it back and forth.
func (s *Server) servePromote(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(peers.HeaderCluster, command.IDText(s.cfg.ClusterID))
	text := strings.TrimPrefix(r.URL.Path, peers.PathPromote)
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		http.Error(w, fmt.Sprintf("member %s not found in cluster", text), http.StatusNotFound)
		return
	}
	ctx := r.Context()
	if token := r.Header.Get("Authorization"); token != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs(rpctypes.TokenFieldNameGRPC, token))
	}
	err = s.authorizeAdmin(ctx)
	if err == nil {
		members, promoteErr := s.cluster.promoteHere(ctx, id)
		if err = promoteErr; err == nil {
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(members); err != nil {
				s.logger.Warn("failed to encode members response", zap.Error(err))
			}
			return
		}
	}
	s.logger.Warn("failed to promote a member", zap.String("member-id", command.IDText(id)), zap.Error(err))
	switch {
	case errors.Is(err, state.ErrMemberNotFound):
		http.Error(w, "membership: ID not found", http.StatusNotFound) // etcd's text here alone
	case errors.Is(err, state.ErrNotLearner), errors.Is(err, replica.ErrLearnerNotReady):
		http.Error(w, err.Error(), http.StatusPreconditionFailed)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// serveHashKV is a GET with a JSON body, as etcd's leader asks when it compares
// the members.
func (s *Server) serveHashKV(w http.ResponseWriter, r *http.Request) {
	if id := r.Header.Get(peers.HeaderCluster); id != "" && id != command.IDText(s.cfg.ClusterID) {
		http.Error(w, "cluster ID mismatch", http.StatusPreconditionFailed)
		return
	}
	body, ok := peers.ReadQuestion(w, r, peers.MaxQuestionBytes)
	if !ok {
		return
	}
	var req pb.HashKVRequest
	if err := json.Unmarshal(body, &req); err != nil {
		s.logger.Warn("failed to unmarshal request", zap.Error(err))
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	resp, err := s.hashFor(r.Context(), req.Revision, r.Header.Get(peers.HeaderHashOf))
	if err != nil {
		if errors.Is(err, leader.ErrNoCompactionHash) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.logger.Warn("failed to get hashKV", zap.Int64("requested-revision", req.Revision), zap.Error(err))
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set(peers.HeaderCluster, command.IDText(s.cfg.ClusterID))
	peers.AnswerJSON(w, resp)
}

// hashFor answers another member; its header has the revision alone.
func (s *Server) hashFor(ctx context.Context, rev int64, of string) (*pb.HashKVResponse, error) {
	switch of {
	case peers.HashOfState:
		hash, compactRev, current, err := s.kvStore.HashState(yielding{ctx}, rev)
		if err != nil {
			return nil, err
		}
		return &pb.HashKVResponse{
			Header: &pb.ResponseHeader{Revision: current}, Hash: hash, CompactRevision: compactRev, HashRevision: rev,
		}, nil
	case peers.HashOfCompaction:
		if !slices.ContainsFunc(s.kvStore.CompactionHashes(), func(h mvcc.CompactionHash) bool { return h.Revision == rev }) {
			return nil, leader.ErrNoCompactionHash
		}
	}
	return s.hashKV(yielding{ctx}, rev)
}

// errBadBody answers a question that is not what its path asks for.
var errBadBody = errors.New("error unmarshalling request")

// serveLease answers a question about a lease for a member that does not lead. Its 405 names no
// method, as etcd's does not.
func (s *Server) serveLease(answer func(r *http.Request, body []byte) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		body, ok := peers.ReadQuestion(w, r, peers.MaxQuestionBytes)
		if !ok {
			return
		}
		out, err := answer(r, body)
		switch {
		case err == nil:
			peers.AnswerProto(w, out)
		case errors.Is(err, lease.ErrNotFound):
			http.Error(w, "lease not found", http.StatusNotFound)
		case errors.Is(err, replica.ErrTimeoutWaitApplied):
			http.Error(w, errLeaseHTTPTimeout.Error(), http.StatusRequestTimeout)
		case errors.Is(err, replica.ErrLeaderChanged):
			http.Error(w, lease.ErrNotPrimary.Error(), http.StatusInternalServerError)
		default:
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}
}

func (s *Server) answerRenew(r *http.Request, body []byte) ([]byte, error) {
	var req pb.LeaseKeepAliveRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return nil, errBadBody
	}
	ttl, err := s.lease.renewHere(r.Context(), lease.ID(req.ID))
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&pb.LeaseKeepAliveResponse{ID: req.ID, TTL: ttl})
}

func (s *Server) answerTimeToLive(r *http.Request, body []byte) ([]byte, error) {
	inner, err := unwrapLease(body)
	if err != nil {
		return nil, errBadBody
	}
	var req pb.LeaseTimeToLiveRequest
	if err := proto.Unmarshal(inner, &req); err != nil {
		return nil, errBadBody
	}
	resp, err := s.lease.timeToLiveHere(r.Context(), &req)
	if err != nil {
		return nil, err
	}
	out, err := proto.Marshal(resp)
	return wrapLease(out), err
}

// downgradeBarrier bounds how long the answer waits for a quorum.
const downgradeBarrier = 150 * time.Millisecond

func (s *Server) serveDowngradeEnabled(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(peers.HeaderCluster, command.IDText(s.cfg.ClusterID))
	// Who asks is about to join. If it makes the second member of two, there is no quorum until it has: it gets what is
	// known here, rather than that everybody waits for nobody.
	ctx, cancel := context.WithTimeout(r.Context(), downgradeBarrier)
	defer cancel()
	if err := s.replica.ReadBarrier(ctx); err != nil {
		s.logger.Info("telling what is known here of a downgrade: the other members cannot be asked", zap.Error(err))
	}
	w.Header().Set("Content-Type", "text/plain")
	fmt.Fprint(w, s.state.DowngradeInfo().Enabled)
}
