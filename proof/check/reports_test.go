package check

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
)

// A story is something that users of etcd reported, or were surprised by: requests in an order, with
// kills, stops and elections in between. It is told to an etcd and to a Belay, and every line of
// what they answered must be equal.
type story struct {
	name string
	size int      // members
	args []string // of each
	// certificates: clients need one, whose name is a user.
	certificates bool
	tell         func(r *teller)
}

// TestReports tells every story to both.
//
//	BELAY_REPORTS=1 go test -v ./proof/check -run 'TestReports/NAME'
//
// BELAY_REPORTS_DIR=dir writes what each side answered into dir. With BELAY_REPORTS_PROXY=1 the
// calls of stories with one member go to Belay through a `belay proxy`, of which clients should
// notice nothing.
func TestReports(t *testing.T) {
	if os.Getenv("BELAY_REPORTS") == "" {
		t.Skip("make reports; it takes minutes")
	}
	for _, s := range slices.Concat(fieldStories(), callStories(), stateStories(), streamStories(), leaseStories(), authStories(), gatewayStories()) {
		t.Run(s.name, func(t *testing.T) { compareStory(t, s) })
	}
}

func compareStory(t *testing.T, s story) {
	kinds := [2]cluster.Kind{checkKind(t), cluster.Etcd}
	var lines [2][]string
	var wg sync.WaitGroup
	for i, kind := range kinds {
		cfg := cluster.Config{Kind: kind, Size: max(1, s.size), Args: s.args}
		var issuer *issuer
		if s.certificates {
			issuer = newIssuer(t, "check")
			for _, name := range []string{"root", "u", "n", "nobody"} {
				issuer.issue(name, nil)
			}
			issuer.issue("nameless", func(c *x509.Certificate) { c.Subject.CommonName = "" })
			cfg.TLS = issuer.client("root")
			cfg.Args = append(slices.Clone(s.args), "--cert-file="+issuer.Cert("nameless"), "--key-file="+issuer.Key("nameless"), "--trusted-ca-file="+issuer.CA(), "--client-cert-auth")
		}
		c := startCluster(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		r := &teller{t: t, ctx: ctx, kind: kind, c: c, client: freshClient, issuer: issuer}
		if issuer != nil {
			r.holding("root")
		}
		if os.Getenv("BELAY_REPORTS_PROXY") != "" && i == 0 && len(c.Members) == 1 {
			r.through = startProxyProcess(t, "", []string{c.Members[0].Endpoint()}, "--advertise-client-url=").address
		}
		defer r.close()
		r.meet()
		wg.Go(func() {
			s.tell(r)
			lines[i] = r.lines
		})
	}
	wg.Wait()
	if dir := os.Getenv("BELAY_REPORTS_DIR"); dir != "" {
		for i, kind := range kinds {
			file := dir + "/" + strings.ReplaceAll(s.name, " ", "-") + "." + fmt.Sprint(i) + string(kind)
			if err := os.WriteFile(file, []byte(strings.Join(lines[i], "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	different := 0
	for n := range max(len(lines[0]), len(lines[1])) {
		var got, want string
		if n < len(lines[0]) {
			got = lines[0][n]
		}
		if n < len(lines[1]) {
			want = lines[1][n]
		}
		if got == want {
			continue
		}
		if different++; different > 25 {
			continue
		}
		t.Errorf("line %d:\n%s %s\netcd  %s", n+1, kinds[0], abridge(got), abridge(want))
	}
	t.Logf("%d answers compared, %d differ", len(lines[1]), different)
	if len(lines[1]) < 3 {
		t.Error("the story says too little")
	}
}

// teller tells a story to one side and writes down what comes back.
type teller struct {
	t      *testing.T
	ctx    context.Context
	kind   cluster.Kind
	c      *cluster.Cluster
	client *http.Client
	issuer *issuer // nil without certificates
	// through is the address of a proxy before member 0, "" without.
	through string
	conns   []*grpc.ClientConn
	words   []string // pairs: what is this side's own, and the word for it
	lines   []string
	mu      sync.Mutex
}

func (r *teller) close() {
	for _, c := range r.conns {
		if c != nil {
			c.Close()
		}
	}
}

// meet learns the members' ids.
func (r *teller) meet() {
	for _, m := range r.c.Members {
		r.word(m.PeerURL, m.Name+":peer")
		r.word(m.ClientURL, m.Name+":client")
		r.word(m.Endpoint(), m.Name+":endpoint")
	}
	if err := eventually(r.ctx, func() error {
		list := &pb.MemberListResponse{}
		if err := r.conn(0).Invoke(r.ctx, "/etcdserverpb.Cluster/MemberList", &pb.MemberListRequest{Linearizable: true}, list); err != nil {
			return err
		}
		for _, m := range list.Members {
			if m.Name == "" {
				return errors.New("a member has not told its name yet")
			}
		}
		for _, m := range list.Members {
			r.know(m.ID, m.Name)
		}
		r.know(list.Header.ClusterId, "cluster")
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *teller) word(own, word string) { r.words = append(r.words, own, word) }

// know gives an id that the server made up a name.
func (r *teller) know(id uint64, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.word(fmt.Sprintf("%016x", id), name)
	r.word(fmt.Sprintf("%x", id), name)
	r.word(fmt.Sprint(id), name)
}

func (r *teller) id(name string) uint64 {
	for i := len(r.words) - 2; i >= 0; i -= 2 {
		if r.words[i+1] == name {
			var id uint64
			if _, err := fmt.Sscan(r.words[i], &id); err != nil {
				r.t.Fatal(err)
			}
			return id
		}
	}
	r.t.Fatalf("nobody is called %s", name)
	return 0
}

func (r *teller) plain(text string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.NewReplacer(r.words...).Replace(strings.ReplaceAll(text, "\u00a0", " "))
}

func (r *teller) say(format string, args ...any) {
	line := r.plain(fmt.Sprintf(format, args...))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
}

func (r *teller) conn(i int) *grpc.ClientConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.conns) <= i {
		r.conns = append(r.conns, nil)
	}
	if r.conns[i] == nil {
		conn, err := r.c.Members[i].Dial()
		if r.through != "" && i == 0 {
			conn, err = grpc.NewClient("passthrough:///"+r.through, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)))
		}
		if err != nil {
			r.t.Fatal(err)
		}
		r.conns[i] = conn
	}
	return r.conns[i]
}

// holding makes the next calls to member 0 with somebody's certificate.
func (r *teller) holding(name string) {
	conn, err := dialWith(r.c.Members[0], r.issuer.client(name))
	if err != nil {
		r.t.Fatal(err)
	}
	r.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: r.issuer.client(name)}}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.conns) == 0 {
		r.conns = make([]*grpc.ClientConn, 1)
	}
	if r.conns[0] != nil {
		r.conns[0].Close()
	}
	r.conns[0] = conn
}

// rpc finds a method by "KV/Put".
func rpc(name string) (full string, desc protoreflect.MethodDescriptor) {
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_rpc_proto, electionpb.File_belay_server_electionpb_election_proto, lockpb.File_belay_server_lockpb_lock_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				d := service.Methods().Get(j)
				if string(service.Name()+"/"+d.Name()) == name {
					return fmt.Sprintf("/%s/%s", service.FullName(), d.Name()), d
				}
			}
		}
	}
	panic("no method " + name)
}

func newOf(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // it came with generated code
	}
	return t.New().Interface()
}

// with adds metadata to the calls of a part of a story.
func (r *teller) with(part func(), kv ...string) {
	before := r.ctx
	r.ctx = metadata.AppendToOutgoingContext(before, kv...)
	part()
	r.ctx = before
}

// ask calls a unary method of member i.
func (r *teller) ask(ctx context.Context, i int, method string, req proto.Message) (proto.Message, error) {
	full, desc := rpc(method)
	resp := newOf(desc.Output())
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := r.conn(i).Invoke(ctx, full, req, resp, grpc.WaitForReady(true))
	return resp, err
}

// call asks and says what came.
func (r *teller) call(i int, method string, req proto.Message) (proto.Message, error) {
	resp, err := r.ask(r.ctx, i, method, req)
	r.say("m%d %s %s => %s", i+1, method, abridge(printed(req)), r.shown(resp, err))
	return resp, err
}

// printed is oneLine for requests that may be raw bytes.
func printed(m proto.Message) string {
	if e, ok := m.(*emptypb.Empty); ok {
		return fmt.Sprintf("%q", []byte(e.ProtoReflect().GetUnknown()))
	}
	return oneLine(m)
}

// shown prints an answer without what no two servers share.
func (r *teller) shown(m proto.Message, err error) string {
	if err != nil {
		s := status.Convert(err)
		text := strings.ReplaceAll(s.Message(), "\u00a0", " ")
		if strings.Contains(text, "connection") && s.Code() == codes.Unavailable {
			text = "no connection"
		}
		// grpc-go has another text from 1.84 on.
		text = strings.Replace(text, "grpc: error unmarshalling request", "grpc: failed to unmarshal the received message", 1)
		if s.Code() == codes.DeadlineExceeded {
			text = "" // the client's own clock or the server's word, whichever comes first
		}
		if len(s.Details()) > 0 {
			text += fmt.Sprint(" details ", s.Details())
		}
		return fmt.Sprintf("%v %q", s.Code(), text)
	}
	m = proto.Clone(m)
	if h, ok := m.(interface{ GetHeader() *pb.ResponseHeader }); ok && h.GetHeader() != nil {
		h.GetHeader().RaftTerm = min(h.GetHeader().RaftTerm, 1)
	}
	switch c := m.(type) {
	case *pb.StatusResponse:
		c.RaftIndex, c.RaftAppliedIndex, c.RaftTerm = min(c.RaftIndex, 1), min(c.RaftAppliedIndex, 1), min(c.RaftTerm, 1)
		c.DbSize, c.DbSizeInUse = min(c.DbSize, 1), min(c.DbSizeInUse, 1)
		c.StorageVersion = "" // etcd's follows a moment after the start
		for i, text := range c.Errors {
			c.Errors[i] = r.plain(strings.Join(strings.Fields(text), " "))
		}
		slices.Sort(c.Errors)
	case *pb.MemberListResponse:
		sortMembers(c.Members)
	case *pb.MemberAddResponse:
		sortMembers(c.Members)
	case *pb.MemberRemoveResponse:
		sortMembers(c.Members)
	case *pb.MemberUpdateResponse:
		sortMembers(c.Members)
	case *pb.MemberPromoteResponse:
		sortMembers(c.Members)
	case *pb.HashResponse:
		c.Hash = min(c.Hash, 1)
	case *pb.LeaseLeasesResponse:
		if len(r.c.Members) > 1 { // followers know no clocks: in etcd they have them in a map's order
			slices.SortFunc(c.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
		}
	case *pb.LeaseTimeToLiveResponse:
		if c.TTL > 0 && c.TTL <= c.GrantedTTL && c.TTL >= c.GrantedTTL-200 {
			c.TTL = c.GrantedTTL // a clock between
		}
		sortBytes(c.Keys)
	case *pb.AlarmResponse:
		slices.SortFunc(c.Alarms, func(a, b *pb.AlarmMember) int {
			return strings.Compare(r.plain(fmt.Sprint(a.MemberID, a.Alarm)), r.plain(fmt.Sprint(b.MemberID, b.Alarm)))
		})
	case *pb.AuthenticateResponse:
		if len(c.Token) > 16 {
			c.Token = "given"
		}
	}
	return abridge(r.plain(oneLine(m)))
}

// wire sends bytes in place of a message.
func rawMessage(b []byte) proto.Message {
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown(b)
	return m
}

// leader is the member that leads, once all that run agree.
func (r *teller) leader(running ...int) int {
	var lead int
	if err := eventually(r.ctx, func() error {
		lead = -1
		for _, i := range running {
			resp, err := r.ask(r.ctx, i, "Maintenance/Status", &pb.StatusRequest{})
			if err != nil {
				return err
			}
			st := resp.(*pb.StatusResponse)
			name := r.plain(fmt.Sprint(st.Leader))
			at := slices.IndexFunc(r.c.Members, func(m *cluster.Member) bool { return m.Name == name })
			if at < 0 || lead >= 0 && lead != at {
				return fmt.Errorf("no leader: %v", st)
			}
			lead = at
		}
		return nil
	}); err != nil {
		r.t.Error(err)
	}
	return lead
}

// lead makes member i the leader.
func (r *teller) lead(i int, running ...int) {
	if err := eventually(r.ctx, func() error {
		now := r.leader(running...)
		if now == i {
			return nil
		}
		_, err := r.ask(r.ctx, now, "Maintenance/MoveLeader", &pb.MoveLeaderRequest{TargetID: r.id(r.c.Members[i].Name)})
		if err == nil {
			err = errors.New("moved")
		}
		return err
	}); err != nil {
		r.t.Error(err)
	}
}

// settle waits until all members that run have applied the same.
func (r *teller) settle(running ...int) {
	if err := eventually(r.ctx, func() error {
		for _, i := range running {
			if _, err := r.ask(r.ctx, i, "KV/Range", &pb.RangeRequest{Key: []byte("settled?")}); err != nil {
				if status.Code(err) == codes.Unavailable {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		r.t.Error(err)
	}
}

// restart ends member i, by a kill or in order, and starts it again.
func (r *teller) restart(i int, kill bool) {
	m := r.c.Members[i]
	if kill {
		_ = m.Kill()
	} else if err := m.Stop(r.ctx); err != nil {
		r.t.Error(err)
	}
	if err := m.Start(); err != nil {
		r.t.Error(err)
		return
	}
	if err := m.WaitReady(r.ctx); err != nil {
		r.t.Error(err)
	}
}

// freshClient keeps no connections: one that a restart has ended fails the next request.
var freshClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// http asks member i over HTTP and says what came.
func (r *teller) http(i int, c httpCase) { r.say("%s", r.httpLine(i, c)) }

// https asks all at the same time, for where each waits long.
func (r *teller) https(i int, cases []httpCase) {
	lines := make([]string, len(cases))
	var wg sync.WaitGroup
	for n, c := range cases {
		wg.Go(func() { lines[n] = r.httpLine(i, c) })
	}
	wg.Wait()
	for _, line := range lines {
		r.say("%s", line)
	}
}

func (r *teller) httpLine(i int, c httpCase) string {
	answer, err := c.ask(r.client, r.c.Members[i].ClientURL)
	if err != nil {
		answer = "error " + regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(err.Error(), "ADDRESS")
	}
	// A deadline passes at both ends of a call; the server's end may be the first to tell.
	answer = strings.Replace(answer, "stream terminated by RST_STREAM with error code: CANCEL", "context deadline exceeded", 1)
	if strings.HasPrefix(c.path, "/readyz") { // the order of checks in etcd is that of a map
		lines := strings.Split(strings.Replace(answer, "[+]disk ok\n", "", 1), "\n") // Belay's own check
		slices.Sort(lines)
		answer = strings.Join(lines, "\n")
	}
	if r.issuer != nil { // over TLS etcd's gateway sends this with errors, too
		answer = strings.Replace(answer, "Grpc-Metadata-Content-Type: application/grpc\n", "", 1)
	}
	return fmt.Sprintf("m%d %s => %s", i+1, abridge(c.String()), strings.ReplaceAll(answer, "\n", " | "))
}

// A watcher reads one Watch stream.
type watcher struct {
	r      *teller
	stream grpc.ClientStream
	cancel context.CancelFunc
	got    chan *pb.WatchResponse
	err    error // valid once got is closed
}

func (r *teller) watch(i int) *watcher {
	ctx, cancel := context.WithCancel(r.ctx)
	stream, err := r.conn(i).NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/etcdserverpb.Watch/Watch", grpc.WaitForReady(true))
	if err != nil {
		r.t.Fatal(err)
	}
	w := &watcher{r: r, stream: stream, cancel: cancel, got: make(chan *pb.WatchResponse, 100_000)}
	go func() {
		defer close(w.got)
		for {
			resp := &pb.WatchResponse{}
			if w.err = stream.RecvMsg(resp); w.err != nil {
				return
			}
			w.got <- resp
		}
	}()
	return w
}

func (w *watcher) create(req *pb.WatchCreateRequest) {
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
}

func (w *watcher) drop(id int64) {
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (w *watcher) progress() {
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

func (w *watcher) send(m proto.Message) {
	if err := w.stream.SendMsg(m); err != nil && err != io.EOF {
		w.r.say("watch: send %s: %v", printed(m), err)
	}
}

// next says n more responses, or that they do not come.
func (w *watcher) next(n int) {
	for range n {
		select {
		case resp, ok := <-w.got:
			if !ok {
				w.r.say("watch: ended: %s", w.r.shown(nil, w.err))
				return
			}
			w.r.say("watch: %s", w.r.shown(resp, nil))
		case <-time.After(10 * time.Second):
			w.r.say("watch: nothing")
			return
		}
	}
}

// past says the responses up to the one with an event of this revision, as one: a member that has
// little of the CPUs sends the past in more of them than another, each with whole revisions.
func (w *watcher) past(rev int64) {
	var all *pb.WatchResponse
	end := time.After(10 * time.Second)
	for {
		select {
		case resp, ok := <-w.got:
			switch {
			case !ok:
				w.r.say("watch: ended: %s", w.r.shown(nil, w.err))
				return
			case all == nil:
				all = resp
			default:
				all.Events = append(all.Events, resp.Events...)
			}
			if n := len(resp.Events); n > 0 && resp.Events[n-1].Kv.ModRevision < rev {
				continue
			}
			w.r.say("watch: %s", w.r.shown(all, nil))
		case <-end:
			if all == nil {
				all = &pb.WatchResponse{}
			}
			w.r.say("watch: nothing after %s", w.r.shown(all, nil))
		}
		return
	}
}

// silent says what still comes within d.
func (w *watcher) silent(d time.Duration) {
	end := time.After(d)
	var lines []string // the order of watches in etcd is that of a map
	for {
		select {
		case resp, ok := <-w.got:
			if ok {
				lines = append(lines, w.r.shown(resp, nil))
				continue
			}
			lines = append(lines, "ended: "+w.r.shown(nil, w.err))
		case <-end:
		}
		break
	}
	slices.Sort(lines)
	w.r.say("watch: within a moment %s", strings.Join(lines, " | "))
}

func repeated(s string, n int) []byte { return bytes.Repeat([]byte(s), n) }
