package server

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/usage"
	"github.com/belaydb/belay/watch"
)

// usageOf tells a tracker who asks for what. Its methods may be called from any goroutine, on nil
// too.
type usageOf struct {
	tracker *usage.Tracker // nil: nobody counts
	callers *authorizer
}

// call tells of a unary call, or of one answer of a stream that reads. A call that failed counts for
// its client alone: what it names need not be anybody's data.
func (u *usageOf) call(ctx context.Context, req, resp any, err error) {
	if u == nil || u.tracker == nil {
		return
	}
	bytes, keys := roughly(req, resp)
	if weight := u.tracker.Sample(bytes, keys); weight > 0 {
		u.count(ctx, weight, req, resp, err)
	}
}

// roughly is about how large a call is. It costs little: it looks at no more than a few dozen keys.
func roughly(req, resp any) (bytes, keys int) {
	switch r := req.(type) {
	case *pb.PutRequest:
		return len(r.Key) + len(r.Value), 1
	case *pb.RangeRequest:
		got := replyOf(resp)
		if keys = got.keys(); keys < usage.LargeKeys {
			bytes = got.bytes()
		}
		return bytes, keys
	case *pb.DeleteRangeRequest:
		got, _ := resp.(*pb.DeleteRangeResponse)
		return 0, int(got.GetDeleted())
	case *pb.TxnRequest:
		got, _ := resp.(*pb.TxnResponse)
		for _, op := range branchOf(r, got) {
			bytes += len(op.GetRequestPut().GetValue())
		}
		for _, op := range got.GetResponses() {
			keys += 1 + len(op.GetResponseRange().GetKvs())
		}
		return bytes, keys
	}
	return 0, 0
}

// count tells of a call that was sampled.
func (u *usageOf) count(ctx context.Context, weight float64, req, resp any, err error) {
	use := usage.Use{Client: clientOf(ctx), User: u.userOf(ctx)}
	if err == nil {
		use.Ops = appendOps(nil, req, resp)
	}
	use.Of[usage.Requests] = 1
	for i := range use.Ops {
		for m := usage.Bytes; m <= usage.Churn; m++ {
			use.Of[m] += use.Ops[i].Of[m]
		}
	}
	u.tracker.Add(weight, &use)
}

// appendOps appends what a call did with keys.
func appendOps(ops []usage.Op, req, resp any) []usage.Op {
	op := func(key, end []byte, bytes, keys, churn int) {
		ops = append(ops, usage.Op{Key: key, End: end, Of: usage.Amounts{
			usage.Requests: 1, usage.Bytes: float64(bytes), usage.Keys: float64(keys), usage.Churn: float64(churn),
		}})
	}
	switch r := req.(type) {
	case *pb.PutRequest:
		got, _ := resp.(*pb.PutResponse)
		op(r.Key, nil, len(r.Key)+len(r.Value)+len(got.GetPrevKv().GetValue()), 1, 1)
	case *pb.RangeRequest:
		got := replyOf(resp)
		op(r.Key, r.RangeEnd, got.bytes(), got.keys(), 0)
	case *pb.DeleteRangeRequest:
		got, _ := resp.(*pb.DeleteRangeResponse)
		n := int(got.GetDeleted())
		op(r.Key, r.RangeEnd, n*len(r.Key)+sizeOf(got.GetPrevKvs()), n, n)
	case *pb.TxnRequest:
		got, _ := resp.(*pb.TxnResponse)
		branch := branchOf(r, got)
		answers := got.GetResponses()
		if len(answers) == 0 && len(r.Compare) > 0 {
			op(r.Compare[0].GetKey(), r.Compare[0].GetRangeEnd(), 0, 0, 0) // it only compared
		}
		for i := range min(len(branch), len(answers)) {
			a := answers[i]
			switch o := branch[i].GetRequest().(type) {
			case *pb.RequestOp_RequestPut:
				ops = appendOps(ops, o.RequestPut, a.GetResponsePut())
			case *pb.RequestOp_RequestRange:
				ops = appendOps(ops, o.RequestRange, a.GetResponseRange())
			case *pb.RequestOp_RequestDeleteRange:
				ops = appendOps(ops, o.RequestDeleteRange, a.GetResponseDeleteRange())
			case *pb.RequestOp_RequestTxn:
				ops = appendOps(ops, o.RequestTxn, a.GetResponseTxn())
			}
		}
	}
	return ops
}

// branchOf are the operations of a transaction that were done.
func branchOf(r *pb.TxnRequest, got *pb.TxnResponse) []*pb.RequestOp {
	if got.GetSucceeded() {
		return r.Success
	}
	return r.Failure
}

func sizeOf(kvs []*mvccpb.KeyValue) (bytes int) {
	for _, kv := range kvs {
		bytes += len(kv.Key) + len(kv.Value)
	}
	return bytes
}

// message tells of a client's message on a stream that is a request of its own.
func (u *usageOf) message(ctx context.Context, m any) {
	switch m.(type) {
	case *pb.LeaseKeepAliveRequest, *pb.WatchRequest:
		u.call(ctx, nil, nil, nil)
	}
}

// watchCreated tells of a new watch; end as in the request.
func (u *usageOf) watchCreated(key, end []byte) {
	if u == nil {
		return
	}
	if weight := u.tracker.Sample(0, 0); weight > 0 {
		u.tracker.Add(weight, &usage.Use{Watched: usage.RangeName(key, end), WatchOf: usage.Amounts{usage.Churn: 1}})
	}
}

// watchSent tells of events that were sent to a watch.
func (u *usageOf) watchSent(ctx context.Context, r *watch.Response) {
	if u == nil || u.tracker == nil {
		return
	}
	bytes := 0
	if len(r.Events) < usage.LargeKeys {
		bytes = eventSizes(r.Events)
	}
	weight := u.tracker.Sample(bytes, len(r.Events))
	if weight == 0 {
		return
	}
	watched := r.Range()
	use := usage.Use{Client: clientOf(ctx), User: u.userOf(ctx), Watched: usage.RangeName(watched.Key, watched.End)}
	use.Of = usage.Amounts{usage.Bytes: float64(eventSizes(r.Events)), usage.Keys: float64(len(r.Events))}
	use.WatchOf = use.Of
	use.WatchOf[usage.Requests] = 1
	u.tracker.Add(weight, &use)
}

func eventSizes(events []*mvccpb.Event) (bytes int) {
	for _, ev := range events {
		bytes += len(ev.Kv.Key) + len(ev.Kv.Value) + len(ev.PrevKv.GetValue())
	}
	return bytes
}

// clientOf is the address of a call's client, without port.
func clientOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	switch p.Addr.Network() { // its type is that of what the listener has put around the connection
	case "unix":
		return "unix"
	case "pipe":
		// From our own gateway, which puts the address that it sees behind those that a client may
		// have invented.
		md, _ := metadata.FromIncomingContext(ctx)
		if all := md["x-forwarded-for"]; len(all) > 0 {
			list := strings.Split(all[len(all)-1], ",")
			return strings.TrimSpace(list[len(list)-1])
		}
	}
	return callerHost(ctx)
}

// userOf is the name of a call's user, as far as this member knows it without waiting; empty while
// authentication is off.
func (u *usageOf) userOf(ctx context.Context) string {
	p := u.callers.rules.Policy()
	if !p.Enabled() {
		return ""
	}
	if token, ok := tokenOf(ctx); ok {
		if u.callers.tokens == nil {
			return ""
		}
		who, _ := u.callers.tokens.Known(token, p.Revision())
		return who.User
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if !u.callers.clientCertAuth || len(md["grpcgateway-accept"]) > 0 {
		return ""
	}
	return u.callers.certificateName(ctx, md, p).User
}

func (p *pages) handleUsage(mux *http.ServeMux) {
	if p.usage != nil && p.usage.tracker != nil {
		mux.HandleFunc(usage.Path, p.rootOnly(p.serveUsage))
	}
}

// rootOnly lets pass, with users on, only who shows a token or a certificate of root, as they are
// shown to the gateway and to gRPC; and never a page of another origin, whatever --cors allows:
// names of keys are not for the pages that an operator's browser happens to show.
func (p *pages) rootOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		for _, name := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers"} {
			w.Header().Del(name)
		}
		if _, cross := crossOrigin(r); cross {
			http.Error(w, "not for a page of another origin", http.StatusForbidden)
			return
		}
		if !peers.AllowMethod(w, r, http.MethodGet) {
			return
		}
		if err := p.admin(callOf(r)); err != nil {
			http.Error(w, toGRPC(err).Error()+" (with users on, this is for root: Authorization: TOKEN, as /v3/auth/authenticate gives it, or a certificate)", http.StatusUnauthorized)
			return
		}
		next(w, r)
	}
}

// withToken is the context that a gRPC call with the request's token would have.
func withToken(r *http.Request) context.Context {
	token := r.Header.Get("Authorization")
	if token == "" {
		return r.Context()
	}
	return metadata.NewIncomingContext(r.Context(), metadata.Pairs(rpctypes.TokenFieldNameGRPC, token))
}

// callOf is the context that a gRPC call with the request's token and certificate would have.
func callOf(r *http.Request) context.Context {
	ctx := withToken(r)
	if r.TLS != nil {
		ctx = peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: *r.TLS}})
	}
	return ctx
}

// serveUsage answers who uses this member (?top=20 names of each kind and measure).
func (p *pages) serveUsage(w http.ResponseWriter, r *http.Request) {
	const defaultTop = 20
	top := defaultTop
	if text := r.URL.Query().Get("top"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > usage.MaxTop {
			http.Error(w, "top must be a number from 1 to "+strconv.Itoa(usage.MaxTop), http.StatusBadRequest)
			return
		}
		top = n
	}
	answer := p.usage.tracker.Answer(top)
	answer.MemberID, answer.Name = command.IDText(p.memberID), p.usageName
	peers.AnswerJSON(w, answer)
}
