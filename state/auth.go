package state

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
)

// policyNow is the policy that readers see, until replaced is closed.
type policyNow struct {
	policy   *auth.Policy
	replaced chan struct{}
}

// Policy is the users and roles as of the applied index.
func (m *Machine) Policy() *auth.Policy { return m.policy.Load().policy }

// PolicyUntil is Policy and a channel that is closed when another policy has replaced it. Events of
// entries after the change go to the Sink only afterwards: a reader that has such an event, and
// then reads the policy, sees the new one.
func (m *Machine) PolicyUntil() (p *auth.Policy, replaced <-chan struct{}) {
	now := m.policy.Load()
	return now.policy, now.replaced
}

// publishPolicy publishes a policy. It is called for every batch, and nearly always does nothing.
func (m *Machine) publishPolicy(p *auth.Policy) {
	old := m.policy.Load()
	if old != nil && old.policy == p {
		return
	}
	m.policy.Store(&policyNow{p, make(chan struct{})})
	if old != nil {
		close(old.replaced)
	}
}

// loadPolicy reads users and roles from the store. Tokens of users whom another history has
// deleted, or given another password, end: the entries that would have ended them are not applied
// here.
func (m *Machine) loadPolicy() error {
	p, err := auth.Load(m.cfg.Store, m.logger)
	if err != nil {
		return err
	}
	if old := m.policy.Load(); old != nil && m.cfg.Tokens != nil {
		m.cfg.Tokens.Keep(func(user string) bool { return p.Enabled() && p.SameUser(old.policy, user) })
	}
	m.publishPolicy(p)
	return nil
}

// leaseKeys are the keys of a lease as the open batch has them.
func (a *application) leaseKeys(id int64) ([][]byte, error) {
	if !a.m.cfg.Leases.Exists(lease.ID(id)) {
		return nil, nil
	}
	keys, err := a.m.cfg.Leases.Keys(a.b, lease.ID(id))
	if err != nil {
		a.failed("keys of a lease", err)
	}
	return keys, nil
}

// writers remembers which user was allowed to write all keys of a lease, so that attaching one more
// key does not check them all: that made a lease of n keys cost n*n checks. Its answers must equal
// those of the checks, because a restarted member remembers nothing; so only puts use it, whose own
// key, user and revision were judged before.
type writers struct {
	policy *auth.Policy // under which all this holds
	user   string       // whose request is applied
	asked  []int64      // leases whose keys are being checked for user
	may    map[int64]string
}

// maxWriters bounds what is remembered.
const maxWriters = 1 << 16

func (w *writers) begin(p *auth.Policy, user string) {
	if w.policy != p || len(w.may) > maxWriters {
		w.policy, w.may = p, make(map[int64]string)
	}
	w.user, w.asked = user, w.asked[:0]
}

// learn remembers the leases asked about if their check succeeded.
func (w *writers) learn(err error) error {
	if err == nil {
		for _, id := range w.asked {
			w.may[id] = w.user
		}
	}
	return err
}

// attached is called for each key that is attached to a lease. The present user may write it.
func (w *writers) attached(id int64) {
	if user, ok := w.may[id]; ok && user != w.user {
		delete(w.may, id)
	}
}

// keysToWrite are the keys of a lease that are to be checked for a put.
func (a *application) keysToWrite(id int64) ([][]byte, error) {
	if user, ok := a.m.writers.may[id]; ok && user == a.m.writers.user {
		return nil, nil
	}
	a.m.writers.asked = append(a.m.writers.asked, id)
	return a.leaseKeys(id)
}

// authorize judges the user and the auth revision in a request's header, whatever the member that
// proposed it believed: rules may have changed while the request was on its way.
func (a *application) authorize(k kind, r *pb.InternalRaftRequest) error {
	p := a.policy
	if !p.Enabled() {
		return nil
	}
	who := auth.Identity{User: r.Header.GetUsername(), Revision: r.Header.GetAuthRevision()}
	a.m.writers.begin(p, who.User)
	switch k {
	case kindPut:
		return a.m.writers.learn(p.Put(who, r.Put, a.keysToWrite))
	case kindRange:
		return p.Read(who, r.Range.GetKey(), r.Range.GetRangeEnd())
	case kindDeleteRange:
		return p.DeleteRange(who, r.DeleteRange)
	case kindTxn:
		return a.m.writers.learn(p.Txn(who, r.Txn, a.keysToWrite))
	case kindLeaseRevoke:
		return p.WriteLease(who, r.LeaseRevoke.GetID(), a.leaseKeys)
	}
	if k.isAuth() && auth.NeedsAdmin(r) {
		return p.Admin(who)
	}
	return nil
}

// applyAuth applies a request of the Auth service.
func (a *application) applyAuth(e *command.Entry) command.Result {
	r := e.Request
	if r.Authenticate != nil {
		return a.authenticate(e.Index, r.Authenticate)
	}
	who := auth.Identity{User: r.Header.GetUsername(), Revision: r.Header.GetAuthRevision()}
	out, err := a.policy.Change(who, r)
	if err != nil {
		return command.Result{Err: err}
	}
	for _, rec := range out.Records {
		if rec.Value == nil {
			a.delete(rec.Key())
		} else {
			a.set(rec.Key(), rec.Value)
		}
	}
	if out.Next != nil {
		a.policy = out.Next
	}
	if a.m.cfg.Tokens != nil && (out.ForgetAll || out.Forget != "") {
		a.m.cfg.Tokens.Keep(func(user string) bool { return !out.ForgetAll && user != out.Forget })
	}
	setRevision(out.Response, a.w.Rev())
	return command.Result{Response: out.Response}
}

// authenticate issues a token to a user whose password the proposer has checked. The token exists
// only in memory; nothing is stored.
func (a *application) authenticate(index uint64, r *pb.InternalAuthenticateRequest) command.Result {
	if err := a.policy.MayAuthenticate(r.Name); err != nil {
		return command.Result{Err: err}
	}
	if a.m.cfg.Tokens == nil {
		return command.Result{Err: auth.ErrAuthFailed}
	}
	if !a.m.cfg.Tokens.Replicated() {
		// The member that was asked signs it: a signature takes a millisecond, which no member
		// should spend here.
		return command.Result{Response: &pb.AuthenticateResponse{Header: a.revisionHeader()}}
	}
	if index <= a.m.cfg.OldTokens { // nobody waits for it: the caller talked to a process that is gone
		return command.Result{Response: &pb.AuthenticateResponse{Header: a.revisionHeader()}}
	}
	token, err := a.m.cfg.Tokens.Assign(r.Name, a.policy.Revision(), r.SimpleToken, index)
	if err != nil {
		return command.Result{Err: err}
	}
	return command.Result{Response: &pb.AuthenticateResponse{Header: a.revisionHeader(), Token: token}}
}

// setRevision gives a response of the Auth service a header with a revision.
func setRevision(resp proto.Message, rev int64) {
	msg := resp.ProtoReflect()
	field := msg.Descriptor().Fields().ByName("header")
	h := &pb.ResponseHeader{Revision: rev}
	msg.Set(field, protoreflect.ValueOfMessage(h.ProtoReflect()))
}
