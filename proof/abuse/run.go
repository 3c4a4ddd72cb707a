package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/belaydb/belay/proof/cluster"
)

// settings are those of all runs.
type settings struct {
	binaries map[cluster.Kind]string
	dir      string
	length   time.Duration // of the attack
	size     int           // members
	quick    bool
	// normalWithin is how long after the attack all must be as before.
	normalWithin time.Duration
}

// run is one attack on one kind.
type run struct {
	settings
	attack
	kind  cluster.Kind
	dir   string
	c     *cluster.Cluster
	ca    *cluster.Authority
	conns []*grpc.ClientConn

	metricsURL string
	tokens     map[string]string
	notes      []string
	watching   time.Duration // worst time of the row's own requests meanwhile
}

// result is one row of one kind.
type result struct {
	run *run
	err error // the run itself failed

	outcome        outcome
	attacked, rest figures
	peak, restPeak int64 // bytes resident at most
	disk           int64 // bytes that the members' folders, their logs and deleted files grew by
	normalAfter    time.Duration
	ended          []string // members that ended, with their last words
	faults         []string // requirements that were not met
}

// The users of rows with authentication.
const (
	admin   = "root"
	reader  = "reader"  // may read pub/
	mallory = "mallory" // may nothing
)

func perform(ctx context.Context, s settings, a attack, kind cluster.Kind) *result {
	r := &run{settings: s, attack: a, kind: kind}
	res := &result{run: r}
	defer r.close()
	if res.err = r.start(ctx); res.err == nil {
		res.err = r.assail(ctx, res)
	}
	return res
}

// next makes a further attack on the members of a run, which were started with the flags it needs.
func (r *run) next(ctx context.Context, a attack) *result {
	r.attack, r.notes, r.watching = a, nil, 0
	res := &result{run: r}
	res.err = r.assail(ctx, res)
	return res
}

// start starts the members with the flags that the row needs.
func (r *run) start(ctx context.Context) (err error) {
	if r.dir, err = os.MkdirTemp(r.settings.dir, r.name+"-"+string(r.kind)+"-"); err != nil {
		return err
	}
	cfg := cluster.Config{Kind: r.kind, Binary: r.binaries[r.kind], Size: r.size, Dir: r.dir, Args: []string{"--bcrypt-cost=10"}}
	if r.few > 0 {
		cfg.Binary = filepath.Join(r.dir, "few")
		script := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec %s \"$@\"\n", r.few, r.binaries[r.kind])
		if err := os.WriteFile(cfg.Binary, []byte(script), 0o755); err != nil {
			return err
		}
	}
	if r.tls {
		if r.ca, err = cluster.NewAuthority(r.dir, "abuse"); err != nil {
			return err
		}
		if _, err = r.ca.Issue("server", nil); err != nil {
			return err
		}
		if cfg.TLS, err = r.ca.Client(""); err != nil {
			return err
		}
		cfg.Args = append(cfg.Args, "--cert-file", r.ca.Cert("server"), "--key-file", r.ca.Key("server"))
	}
	cfg.Args = append(cfg.Args, r.args...)
	if r.c, err = cluster.New(cfg); err != nil {
		return err
	}
	port, err := cluster.FreePort()
	if err != nil {
		return err
	}
	r.metricsURL = fmt.Sprintf("http://127.0.0.1:%d", port)
	r.c.Members[0].SetArgs(func(args []string) []string { return append(args, "--listen-metrics-urls="+r.metricsURL) })
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := r.c.Start(ctx); err != nil {
		return err
	}
	for _, m := range r.c.Members {
		conn, err := m.Dial()
		if err != nil {
			return err
		}
		r.conns = append(r.conns, conn)
	}
	if r.users {
		return r.enable(ctx)
	}
	return nil
}

func (r *run) close() {
	for _, conn := range r.conns {
		conn.Close()
	}
	if r.c != nil {
		r.c.Close()
	}
	os.RemoveAll(r.dir)
}

// enable makes the users, turns authentication on and logs them in.
func (r *run) enable(ctx context.Context) error {
	auth := pb.NewAuthClient(r.conns[0])
	for _, name := range []string{admin, reader, mallory} {
		_, err1 := auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Password: name})
		_, err2 := auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: name})
		_, err3 := auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: name})
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
	}
	_, err := auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: reader, Perm: &authpb.Permission{PermType: authpb.Permission_READ, Key: []byte("pub/"), RangeEnd: []byte("pub0")}})
	if err != nil {
		return err
	}
	if _, err := auth.AuthEnable(ctx, &pb.AuthEnableRequest{}); err != nil {
		return err
	}
	r.tokens = make(map[string]string)
	for _, name := range []string{admin, reader, mallory} {
		resp, err := auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: name, Password: name})
		if err != nil {
			return err
		}
		r.tokens[name] = resp.Token
	}
	return nil
}

// as adds the administrator's token to ctx.
func (r *run) as(ctx context.Context) context.Context {
	if token := r.tokens[admin]; token != "" {
		return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
	}
	return ctx
}

// fill puts keys pub/0000000 and so on before the attack.
func (r *run) fill(ctx context.Context, keys, bytes int) error {
	value := make([]byte, bytes)
	const batch = 100
	for from := 0; from < keys; from += batch {
		txn := &pb.TxnRequest{}
		for i := from; i < min(from+batch, keys); i++ {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: fmt.Appendf(nil, "pub/%07d", i), Value: value}}})
			if bytes > 10_000 || i == keys-1 || len(txn.Success) == batch {
				if _, err := pb.NewKVClient(r.conns[0]).Txn(ctx, txn); err != nil {
					return err
				}
				txn = &pb.TxnRequest{}
			}
		}
	}
	return nil
}

// target returns what the attacker must know.
func (r *run) target(ctx context.Context) (t target, err error) {
	t = target{Attack: r.name, Quick: r.quick, Token: r.tokens[r.token], Metrics: strings.TrimPrefix(r.metricsURL, "http://")}
	if r.tls {
		t.CA = r.ca.CA()
	}
	m := r.c.Members[0]
	t.Client, t.Peer = m.Endpoint(), strings.TrimPrefix(m.PeerURL, "http://")
	for i, m := range r.c.Members {
		t.Clients = append(t.Clients, m.Endpoint())
		st, err := pb.NewMaintenanceClient(r.conns[i]).Status(r.as(ctx), &pb.StatusRequest{})
		if err != nil {
			return t, err
		}
		t.ClusterID = st.Header.ClusterId
		t.Members = append(t.Members, st.Header.MemberId)
	}
	return t, nil
}

// assail attacks, measures, and judges.
func (r *run) assail(ctx context.Context, res *result) error {
	if r.prepare != nil {
		prepare, cancel := context.WithTimeout(r.as(ctx), time.Minute)
		defer cancel()
		if err := r.prepare(prepare, r); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	t, err := r.target(ctx)
	if err != nil {
		return err
	}
	disk := r.disk()
	var calm []int64
	for _, m := range r.c.Members {
		_ = cluster.ResetPeak(m.PID())
		u, err := m.Usage()
		if err != nil {
			return err
		}
		calm = append(calm, u.RSSBytes)
	}
	var clients []*light
	var wg sync.WaitGroup
	lightCtx, stopLight := context.WithCancel(ctx)
	defer stopLight()
	for _, m := range r.c.Members {
		l := &light{m: m, token: r.tokens[admin]}
		clients = append(clients, l)
		wg.Go(func() { _ = l.run(lightCtx) })
	}
	meanwhile, stopMeanwhile := context.WithCancel(ctx)
	defer stopMeanwhile()
	if r.meanwhile != nil {
		wg.Go(func() { r.meanwhile(meanwhile, r) })
	}
	deleted := make(chan int64, 1)
	go func() { deleted <- r.mostDeleted(meanwhile) }()

	res.outcome, err = assault(ctx, t, r.length)
	ended := time.Now()
	stopMeanwhile()
	stopLight()
	for i, m := range r.c.Members {
		select {
		case <-m.Exited():
			res.ended = append(res.ended, fmt.Sprintf("%s ended (%v): %s", m.Name, m.ExitErr(), m.LastWords()))
			continue
		default:
		}
		u, err := m.Usage()
		if err != nil {
			return err
		}
		if i == 0 {
			res.peak = u.PeakRSSBytes
		} else if res.restPeak = max(res.restPeak, u.PeakRSSBytes); u.PeakRSSBytes > calm[i]+r.others() {
			res.faults = append(res.faults, fmt.Sprintf("the memory of %s went from %d to %d MiB", m.Name, calm[i]>>20, u.PeakRSSBytes>>20))
		}
	}
	wg.Wait()
	res.disk = max(r.disk()-disk, 0) + <-deleted
	res.attacked, res.rest = felt(clients[0]), felt(clients[1:]...)
	if err != nil {
		return err
	}

	if len(res.ended) == 0 {
		res.normalAfter = r.normal(ctx, ended)
	}
	r.judge(ctx, res)
	return nil
}

// others is how much the memory of members that are not attacked may grow: by what they replicate.
func (r *run) others() int64 { return max(r.written, 100<<20) }

// normal waits until each member again answers a put and a read on a new connection within half a
// second, and returns how long after the attack that was; -1: not within a minute.
func (r *run) normal(ctx context.Context, ended time.Time) time.Duration {
	for _, m := range r.c.Members {
		l := &light{m: m, token: r.tokens[admin]}
		for {
			took, err := l.get()
			if err == nil {
				var conn *grpc.ClientConn
				if conn, err = m.Dial(); err == nil {
					var put time.Duration
					put, err = l.put(conn)
					took = max(took, put)
					conn.Close()
				}
			}
			if err == nil && (took < 500*time.Millisecond || r.quick) {
				break
			}
			if time.Since(ended) > time.Minute || ctx.Err() != nil {
				return -1
			}
			pause(ctx, 20*time.Millisecond)
		}
	}
	return time.Since(ended)
}

func (r *run) judge(ctx context.Context, res *result) {
	fault := func(format string, args ...any) { res.faults = append(res.faults, fmt.Sprintf(format, args...)) }
	for _, text := range res.ended {
		fault("%.300s", text)
	}
	if bound := r.bound(); res.peak > bound {
		fault("memory %d MiB", res.peak>>20)
	}
	switch {
	case len(res.ended) > 0:
	case res.normalAfter < 0:
		fault("not normal within a minute")
	case res.normalAfter > r.normalWithin:
		fault("normal after %v only", cluster.Round(res.normalAfter))
	}
	if !r.quick { // latencies mean nothing on a busy machine
		for i, f := range []figures{res.attacked, res.rest} {
			where := []string{"on the attacked member", "on the others"}[i]
			if f.worst > time.Second || f.worstFresh > time.Second {
				fault("a light client waited %v %s", cluster.Round(max(f.worst, f.worstFresh)), where)
			}
			if f.failed > 0 {
				fault("%d of %d light requests failed %s", f.failed, f.requests, where)
			}
		}
		if r.watching > time.Second {
			fault("%s took %v", r.watched, cluster.Round(r.watching))
		}
	}
	if r.verify != nil && len(res.ended) == 0 {
		res.faults = append(res.faults, r.verify(ctx, r)...)
	}
}

// bound of the attacked member's memory.
func (r *run) bound() int64 {
	bound := cmp.Or(r.memory, 400<<20)
	if r.quick {
		bound *= 2 // the member still has what earlier attacks left
	}
	return bound
}

// disk is the size of the members' folders and logs.
func (r *run) disk() (total int64) {
	_ = filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // files go while we look
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				total += st.Blocks * 512
			}
		}
		return nil
	})
	return total
}

// mostDeleted is the largest size, until ctx ended, of files that the members held open after they
// were deleted.
func (r *run) mostDeleted(ctx context.Context) (most int64) {
	for {
		total := int64(0)
		for _, m := range r.c.Members {
			fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.PID()))
			for _, fd := range fds {
				name, err := os.Readlink(fd)
				if err != nil || !strings.HasSuffix(name, " (deleted)") || !strings.HasPrefix(name, "/") {
					continue
				}
				if info, err := os.Stat(fd); err == nil && info.Mode().IsRegular() {
					total += info.Size()
				}
			}
		}
		most = max(most, total)
		select {
		case <-ctx.Done():
			return most
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// absent is a verify that requires that a key was not written.
func absent(key string) func(ctx context.Context, r *run) []string {
	return func(ctx context.Context, r *run) []string {
		resp, err := pb.NewKVClient(r.conns[0]).Range(ctx, &pb.RangeRequest{Key: []byte(key)})
		if err != nil {
			return []string{err.Error()}
		}
		if len(resp.Kvs) > 0 {
			return []string{fmt.Sprintf("the attacker has written %s", key)}
		}
		return nil
	}
}

// restarts is a verify that requires that each member starts again.
func restarts(ctx context.Context, r *run) []string {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, m := range r.c.Members {
		if err := errors.Join(m.Kill(), m.Start()); err != nil {
			return []string{err.Error()}
		}
	}
	if err := r.c.WaitReady(ctx); err != nil {
		return []string{"after a restart: " + strings.SplitN(err.Error(), "\n", 2)[0]}
	}
	return nil
}

// page gets a URL.
func page(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var b strings.Builder
	_, err = copyBounded(&b, resp.Body)
	return b.String(), err
}

func (r *run) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.notes, text) {
		r.notes = append(r.notes, text)
	}
}
