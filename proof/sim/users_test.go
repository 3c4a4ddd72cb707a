package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
)

// In a world with users each client writes as a user who may write the registers while having the
// role writer, which a warden grants and revokes. The rights follow from the entries alone: rights
// judges each entry as it is applied, by any member, and every member must have judged alike.

const writerRole = "writer"

func userOf(client int) string { return fmt.Sprintf("u%d", client) }

// rights is a model of package auth for the requests that are made here.
type rights struct {
	w  *world
	mu sync.Mutex

	newest   uint64           // index of the last entry judged
	verdicts map[uint64]error // of puts and transactions
	enabled  bool
	revision uint64
	roles    map[string]bool
	users    map[string]map[string]bool // name -> roles
}

func (x *rights) init(w *world) {
	x.w, x.revision = w, 1
	x.verdicts, x.roles, x.users = map[uint64]error{}, map[string]bool{}, map[string]map[string]bool{}
}

// expect judges entries that are about to be applied. The first member that applies
// an entry has applied, or got in a snapshot of one that had, all before it.
func (x *rights) expect(entries []command.Entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range entries {
		if e.Index <= x.newest || e.Request == nil {
			continue
		}
		x.newest = e.Index
		r := e.Request
		user, revision := r.GetHeader().GetUsername(), r.GetHeader().GetAuthRevision()
		if r.Put != nil || r.Txn != nil {
			x.verdicts[e.Index] = x.verdict(user, revision)
			continue
		}
		if auth.NeedsAdmin(r) && (!x.enabled || x.users[user][auth.Root]) {
			x.change(r)
		}
	}
}

func (x *rights) verdict(user string, revision uint64) error {
	switch {
	case !x.enabled:
		return nil
	case revision == 0:
		return auth.ErrUserEmpty
	case revision < x.revision:
		return auth.ErrAuthOldRevision
	case !x.users[user][auth.Root] && !x.users[user][writerRole]:
		return auth.ErrPermissionDenied
	}
	return nil
}

func (x *rights) change(r *pb.InternalRaftRequest) {
	switch {
	case r.AuthEnable != nil:
		x.enabled = x.enabled || x.users[auth.Root][auth.Root]
	case r.AuthUserAdd != nil && x.users[r.AuthUserAdd.Name] == nil:
		x.users[r.AuthUserAdd.Name] = map[string]bool{}
		x.revision++
	case r.AuthRoleAdd != nil && !x.roles[r.AuthRoleAdd.Name]:
		x.roles[r.AuthRoleAdd.Name] = true
		x.revision++
	case r.AuthRoleGrantPermission != nil && x.roles[r.AuthRoleGrantPermission.Name]:
		x.revision++
	case r.AuthUserGrantRole != nil:
		q := r.AuthUserGrantRole
		if has := x.users[q.User]; has != nil && !has[q.Role] && (q.Role == auth.Root || x.roles[q.Role]) {
			has[q.Role] = true
			x.revision++
		}
	case r.AuthUserRevokeRole != nil:
		q := r.AuthUserRevokeRole
		if x.users[q.Name][q.Role] {
			delete(x.users[q.Name], q.Role)
			x.revision++
		}
	}
}

// compare looks at what a member made of entries.
func (x *rights) compare(l *life, entries []command.Entry, results []command.Result) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, e := range entries {
		want, judged := x.verdicts[e.Index]
		if !judged || i >= len(results) {
			continue
		}
		got := results[i].Err
		if !isOfRights(got) {
			got = nil
		}
		if !errors.Is(got, want) && !l.dead.Load() {
			x.w.violation(wrongRights, "member %s judges entry %d, of user %q at auth revision %d, by %v; it should be %v",
				l.name, e.Index, e.Request.GetHeader().GetUsername(), e.Request.GetHeader().GetAuthRevision(), got, want)
		}
		if want != nil {
			x.w.count("refused: " + want.Error())
		}
	}
}

func isOfRights(err error) bool {
	for _, one := range []error{auth.ErrUserEmpty, auth.ErrAuthOldRevision, auth.ErrPermissionDenied, auth.ErrUserNotFound} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// propose is what every client does with a request: it says as whom.
func (w *world) propose(ctx context.Context, l *life, user string, r *pb.InternalRaftRequest) (command.Result, error) {
	if w.kinds[users] {
		r.Header = &pb.RequestHeader{Username: user, AuthRevision: l.machine.Policy().Revision()}
	}
	return l.replica.Propose(ctx, r)
}

// warden makes users, lets them in, and then changes what they may until the faults
// end. ready is closed when nobody is a stranger any more.
func (w *world) warden(ready chan struct{}) {
	r := rand.New(rand.NewPCG(w.seed, 600))
	ask := func(req *pb.InternalRaftRequest) error {
		ls := w.lives()
		if len(ls) == 0 {
			time.Sleep(100 * time.Millisecond)
			return errDown
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		result, err := w.propose(ctx, ls[r.IntN(len(ls))], auth.Root, req)
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			return err
		}
		return result.Err
	}
	persist := func(req func() *pb.InternalRaftRequest) {
		for !w.calm.Load() {
			err := ask(req())
			if err == nil || errors.Is(err, auth.ErrUserAlreadyExist) || errors.Is(err, auth.ErrRoleAlreadyExist) {
				return
			}
		}
	}
	add := func(name string) {
		persist(func() *pb.InternalRaftRequest {
			return &pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: name, Options: &authpb.UserAddOptions{NoPassword: true}}}
		})
	}
	grant := func(name, role string) *pb.InternalRaftRequest {
		return &pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: name, Role: role}}
	}
	add(auth.Root)
	persist(func() *pb.InternalRaftRequest { return grant(auth.Root, auth.Root) })
	persist(func() *pb.InternalRaftRequest {
		return &pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: writerRole}}
	})
	for _, span := range [][2]string{{"r/", "r0"}, {"deletes/", "deletes0"}} {
		persist(func() *pb.InternalRaftRequest {
			perm := &authpb.Permission{PermType: authpb.READWRITE, Key: []byte(span[0]), RangeEnd: []byte(span[1])}
			return &pb.InternalRaftRequest{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: writerRole, Perm: perm}}
		})
	}
	for n := range clients {
		add(userOf(n))
		persist(func() *pb.InternalRaftRequest { return grant(userOf(n), writerRole) })
	}
	persist(func() *pb.InternalRaftRequest { return &pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}} })
	close(ready)
	for !w.calm.Load() {
		w.rest(r, w.clientPause+4*time.Second)
		name := userOf(r.IntN(clients))
		req := grant(name, writerRole)
		if r.IntN(3) == 0 {
			req = &pb.InternalRaftRequest{AuthUserRevokeRole: &pb.AuthUserRevokeRoleRequest{Name: name, Role: writerRole}}
		}
		if ask(req) == nil {
			w.count("changes of rights")
		}
	}
}
