package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

// peerAnswers is what other members are answered over HTTP, in etcd's form.
type peerAnswers struct {
	clusterID uint64
	members   func() []*command.Member
	downgrade func() command.Downgrade
	barrier   func(context.Context) error // Replica.ReadBarrier
	callers   *authorizer
	cluster   *clusterService
	lease     *leaseService
	renewals  *renewalAnswers
	hashes    history
	version   http.HandlerFunc
	logger    *zap.Logger
}

func (a *peerAnswers) register(mux *peers.Mux) {
	mux.Handle(peers.PathMembers, http.MethodGet, peers.Anyone, a.serveMembers)
	mux.Handle(peers.PathPromote, http.MethodPost, peers.Members, a.servePromote)
	mux.Handle(peers.PathHashKV, http.MethodGet, peers.Anyone, a.serveHashKV)
	mux.Handle(peers.PathLeases, "", peers.Members, a.serveLease(a.answerRenew))
	mux.Handle(peers.PathRenewals, http.MethodGet, peers.NamedMembers, a.renewals.serveHTTP)
	mux.Handle(peers.PathLeasesInternal, "", peers.Members, a.serveLease(a.answerTimeToLive))
	mux.Handle(peers.PathDowngradeEnabled, http.MethodGet, peers.Anyone, a.serveDowngradeEnabled)
	mux.Handle(peers.PathVersion, http.MethodGet, peers.Anyone, a.version)
}

func (a *peerAnswers) serveMembers(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set(peers.HeaderCluster, command.IDText(a.clusterID))
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(a.members()); err != nil {
		a.logger.Warn("failed to encode membership members", zap.Error(err))
	}
}

// servePromote promotes a learner for a member that does not lead. It does not forward the request:
// two members that each take the other for the leader would send it back and forth.
func (a *peerAnswers) servePromote(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(peers.HeaderCluster, command.IDText(a.clusterID))
	text := strings.TrimPrefix(r.URL.Path, peers.PathPromote)
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		http.Error(w, fmt.Sprintf("member %s not found in cluster", text), http.StatusNotFound)
		return
	}
	ctx := withToken(r)
	err = a.callers.authorizeAdmin(ctx)
	if err == nil {
		members, promoteErr := a.cluster.promoteHere(ctx, id)
		if err = promoteErr; err == nil {
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(members); err != nil {
				a.logger.Warn("failed to encode members response", zap.Error(err))
			}
			return
		}
	}
	a.logger.Warn("failed to promote a member", zap.String("member-id", command.IDText(id)), zap.Error(err))
	switch {
	case errors.Is(err, state.ErrMemberNotFound):
		http.Error(w, "membership: ID not found", http.StatusNotFound) // etcd's text here alone
	case errors.Is(err, state.ErrNotLearner), errors.Is(err, replica.ErrLearnerNotReady):
		http.Error(w, err.Error(), http.StatusPreconditionFailed)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// serveHashKV is a GET with a JSON body, as etcd's leader asks when it compares the members.
func (a *peerAnswers) serveHashKV(w http.ResponseWriter, r *http.Request) {
	if !peers.ForCluster(w, r, command.IDText(a.clusterID)) {
		return
	}
	body, ok := peers.ReadQuestion(w, r, peers.MaxQuestionBytes)
	if !ok {
		return
	}
	var req pb.HashKVRequest
	if err := json.Unmarshal(body, &req); err != nil {
		a.logger.Warn("failed to unmarshal request", zap.Error(err))
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	resp, err := a.hashes.of(r.Context(), req.Revision, r.Header.Get(peers.HeaderHashOf))
	if err != nil {
		if errors.Is(err, leader.ErrNoCompactionHash) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a.logger.Warn("failed to get hashKV", zap.Int64("requested-revision", req.Revision), zap.Error(err))
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set(peers.HeaderCluster, command.IDText(a.clusterID))
	peers.AnswerJSON(w, resp)
}

// errBadBody answers a request whose body does not fit its path.
var errBadBody = errors.New("error unmarshalling request")

// serveLease answers a request about a lease from a member that does not lead. Its 405 names no
// method, as etcd's does not.
func (a *peerAnswers) serveLease(answer func(r *http.Request, body []byte) ([]byte, error)) http.HandlerFunc {
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

func (a *peerAnswers) answerRenew(r *http.Request, body []byte) ([]byte, error) {
	var req pb.LeaseKeepAliveRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return nil, errBadBody
	}
	ttl, err := a.lease.renewHere(r.Context(), lease.ID(req.ID))
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&pb.LeaseKeepAliveResponse{ID: req.ID, TTL: ttl})
}

func (a *peerAnswers) answerTimeToLive(r *http.Request, body []byte) ([]byte, error) {
	inner, err := unwrapLease(body)
	if err != nil {
		return nil, errBadBody
	}
	var req pb.LeaseTimeToLiveRequest
	if err := proto.Unmarshal(inner, &req); err != nil {
		return nil, errBadBody
	}
	resp, err := a.lease.timeToLiveHere(r.Context(), &req)
	if err != nil {
		return nil, err
	}
	out, err := proto.Marshal(resp)
	return wrapLease(out), err
}

// downgradeBarrier bounds how long the answer waits for a quorum.
const downgradeBarrier = 150 * time.Millisecond

func (a *peerAnswers) serveDowngradeEnabled(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(peers.HeaderCluster, command.IDText(a.clusterID))
	// The sender is about to join. If it is the second member of two, there is no quorum until it
	// has joined: it gets what is known here, instead of waiting for a quorum that needs it.
	ctx, cancel := context.WithTimeout(r.Context(), downgradeBarrier)
	defer cancel()
	if err := a.barrier(ctx); err != nil {
		a.logger.Info("telling what is known here of a downgrade: the other members cannot be asked", zap.Error(err))
	}
	w.Header().Set("Content-Type", "text/plain")
	fmt.Fprint(w, a.downgrade().Enabled)
}
