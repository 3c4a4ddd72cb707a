package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
)

// A party is a member with authentication on, and the tokens that it gave.
type party struct {
	*cluster.Member
	t      *testing.T
	conn   *grpc.ClientConn
	tokens map[string]string
}

func newParty(t *testing.T, m *cluster.Member) *party {
	t.Helper()
	conn, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &party{Member: m, t: t, conn: conn, tokens: map[string]string{}}
}

func (p *party) ctx(who string) context.Context {
	if token := p.tokens[who]; token != "" {
		return metadata.AppendToOutgoingContext(p.t.Context(), "token", token)
	}
	return p.t.Context()
}

func (p *party) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("%s: %v", p.LogPath, err)
	}
}

// populate makes root, and mallory, who may read and write the key "mine" and nothing else; turns
// authentication on and logs both in. The key "secret" and lease 7, to which it is attached, are
// root's; lease 8 has "mine".
func (p *party) populate() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	kv, leases, admin := pb.NewKVClient(p.conn), pb.NewLeaseClient(p.conn), pb.NewAuthClient(p.conn)
	for i, key := range []string{"secret", "mine"} { // in this order on both sides: revisions are compared
		lease := int64(7 + i)
		_, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: lease, TTL: 5000})
		p.must(err)
		_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("what " + key + " holds"), Lease: lease})
		p.must(err)
	}
	for _, name := range []string{"root", "mallory"} {
		_, err := admin.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Password: name})
		p.must(err)
		_, err = admin.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: name})
		p.must(err)
		_, err = admin.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: name})
		p.must(err)
	}
	_, err := admin.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "mallory", Perm: &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte("mine")}})
	p.must(err)
	_, err = admin.AuthEnable(ctx, &pb.AuthEnableRequest{})
	p.must(err)
	p.login("root", "mallory")
}

func (p *party) login(names ...string) {
	p.t.Helper()
	for _, name := range names {
		r, err := pb.NewAuthClient(p.conn).Authenticate(p.t.Context(), &pb.AuthenticateRequest{Name: name, Password: name})
		p.must(err)
		p.tokens[name] = r.Token
	}
}

// startAuth starts a Belay and an etcd, populated.
func startAuth(t *testing.T, args ...string) (parties [2]*party) {
	t.Helper()
	belay, etcd := startBoth(t, func(c *cluster.Config) { c.Args = append([]string{"--bcrypt-cost=4"}, args...) })
	for i, m := range []*cluster.Member{belay, etcd} {
		parties[i] = newParty(t, m)
		parties[i].populate()
	}
	return parties
}

// An attack is a call that mallory must not make.
type attack struct {
	name     string
	method   string // of gRPC
	path     string // of the gateway
	request  proto.Message
	response proto.Message
	// anybody: every user may; the attack is to have no token.
	anybody bool
}

func txnOf(ops ...*pb.RequestOp) *pb.TxnRequest { return &pb.TxnRequest{Success: ops} }

func nestedIn(depth int, r *pb.TxnRequest) *pb.TxnRequest {
	for range depth {
		r = &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}}}
	}
	return r
}

func putOp(r *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func deleteOp(r *pb.DeleteRangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}
}

func attacks() []attack {
	kv := func(name, call, path string, request, response proto.Message) attack {
		return attack{name: name, method: "/etcdserverpb.KV/" + call, path: "/v3/kv/" + path, request: request, response: response}
	}
	lease := func(name, call, path string, request, response proto.Message) attack {
		return attack{name: name, method: "/etcdserverpb.Lease/" + call, path: "/v3/lease/" + path, request: request, response: response}
	}
	maintenance := func(call, path string, request, response proto.Message) attack {
		return attack{name: "maintenance without rights (GHSA-q8m4-xhhv-38mg): " + call, method: "/etcdserverpb.Maintenance/" + call, path: "/v3/maintenance/" + path, request: request, response: response}
	}
	member := func(call, path string, request, response proto.Message) attack {
		return attack{name: "members without rights (GHSA-q8m4-xhhv-38mg): " + call, method: "/etcdserverpb.Cluster/" + call, path: "/v3/cluster/member/" + path, request: request, response: response}
	}
	administer := func(call, path string, request, response proto.Message) attack {
		return attack{name: "administration: " + call, method: "/etcdserverpb.Auth/" + call, path: "/v3/auth/" + path, request: request, response: response}
	}
	token := func(a attack) attack { a.anybody = true; return a }
	mine, secret := []byte("mine"), []byte("secret")
	txn := func(name string, r *pb.TxnRequest) attack { return kv(name, "Txn", "txn", r, &pb.TxnResponse{}) }
	return []attack{
		// GHSA-rfx7-8w68-q57q, CVE-2026-33343: a transaction within a transaction was not checked.
		txn("nested transaction (GHSA-rfx7-8w68-q57q): read", nestedIn(1, txnOf(rangeOp(&pb.RangeRequest{Key: secret})))),
		txn("nested transaction (GHSA-rfx7-8w68-q57q): read deeper", nestedIn(5, txnOf(rangeOp(&pb.RangeRequest{Key: secret})))),
		txn("nested transaction (GHSA-rfx7-8w68-q57q): write", nestedIn(2, txnOf(putOp(&pb.PutRequest{Key: secret})))),
		txn("nested transaction (GHSA-rfx7-8w68-q57q): delete", nestedIn(2, txnOf(deleteOp(&pb.DeleteRangeRequest{Key: secret})))),
		txn("nested transaction (GHSA-rfx7-8w68-q57q): compare", nestedIn(1, &pb.TxnRequest{Compare: []*pb.Compare{{Key: secret, Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("x")}}}, Success: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: mine})}})),
		txn("nested transaction (GHSA-rfx7-8w68-q57q): the branch not taken", &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: mine})}, Failure: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: secret})}}),
		txn("compare a range beyond", &pb.TxnRequest{Compare: []*pb.Compare{{Key: mine, RangeEnd: []byte("z"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 1}}}}),

		// GHSA-x35m-3gp4-4fh5, CVE-2026-44283: PrevKv and leases of puts within transactions.
		txn("prev_kv in a transaction (GHSA-x35m-3gp4-4fh5)", txnOf(putOp(&pb.PutRequest{Key: secret, PrevKv: true}))),
		txn("prev_kv in a transaction (GHSA-x35m-3gp4-4fh5): delete", txnOf(deleteOp(&pb.DeleteRangeRequest{Key: secret, PrevKv: true}))),
		txn("lease in a transaction (GHSA-x35m-3gp4-4fh5)", txnOf(putOp(&pb.PutRequest{Key: mine, Lease: 7}))),
		txn("lease in a nested transaction (GHSA-x35m-3gp4-4fh5)", nestedIn(1, txnOf(putOp(&pb.PutRequest{Key: mine, Lease: 7})))),
		kv("lease of another's key: attach", "Put", "put", &pb.PutRequest{Key: mine, Lease: 7}, &pb.PutResponse{}),

		kv("range beyond", "Range", "range", &pb.RangeRequest{Key: mine, RangeEnd: []byte{0}}, &pb.RangeResponse{}),
		kv("range beyond: serializable", "Range", "range", &pb.RangeRequest{Key: secret, Serializable: true}, &pb.RangeResponse{}),
		kv("range beyond: count", "Range", "range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true}, &pb.RangeResponse{}),
		kv("range beyond: one byte", "Range", "range", &pb.RangeRequest{Key: mine, RangeEnd: []byte("mine\x00\x00")}, &pb.RangeResponse{}),
		kv("delete beyond", "DeleteRange", "deleterange", &pb.DeleteRangeRequest{Key: mine, RangeEnd: []byte("t")}, &pb.DeleteRangeResponse{}),
		kv("compaction (GHSA-q8m4-xhhv-38mg)", "Compact", "compaction", &pb.CompactionRequest{Revision: 2}, &pb.CompactionResponse{}),

		// GHSA-3p4g-rcw5-8298, CVE-2023-32082: TimeToLive revealed the names of keys.
		lease("keys of a lease (GHSA-3p4g-rcw5-8298)", "LeaseTimeToLive", "timetolive", &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true}, &pb.LeaseTimeToLiveResponse{}),
		// GHSA-q8m4-xhhv-38mg, CVE-2026-33413: calls that nobody judged.
		lease("leases without rights (GHSA-q8m4-xhhv-38mg): revoke", "LeaseRevoke", "revoke", &pb.LeaseRevokeRequest{ID: 7}, &pb.LeaseRevokeResponse{}),
		lease("leases without rights (GHSA-q8m4-xhhv-38mg): list", "LeaseLeases", "leases", &pb.LeaseLeasesRequest{}, &pb.LeaseLeasesResponse{}),
		token(lease("leases without rights (GHSA-q8m4-xhhv-38mg): grant", "LeaseGrant", "grant", &pb.LeaseGrantRequest{TTL: 100}, &pb.LeaseGrantResponse{})),
		token(lease("leases without rights (GHSA-q8m4-xhhv-38mg): time to live", "LeaseTimeToLive", "timetolive", &pb.LeaseTimeToLiveRequest{ID: 98}, &pb.LeaseTimeToLiveResponse{})),
		token(member("MemberList", "list", &pb.MemberListRequest{}, &pb.MemberListResponse{})),
		token(member("MemberList", "list", &pb.MemberListRequest{Linearizable: true}, &pb.MemberListResponse{})),
		member("MemberAdd", "add", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}}, &pb.MemberAddResponse{}),
		member("MemberRemove", "remove", &pb.MemberRemoveRequest{ID: 1}, &pb.MemberRemoveResponse{}),
		member("MemberUpdate", "update", &pb.MemberUpdateRequest{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}}, &pb.MemberUpdateResponse{}),
		member("MemberPromote", "promote", &pb.MemberPromoteRequest{ID: 1}, &pb.MemberPromoteResponse{}),
		token(maintenance("Alarm", "alarm", &pb.AlarmRequest{}, &pb.AlarmResponse{})),
		maintenance("Alarm", "alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT}, &pb.AlarmResponse{}),
		maintenance("Alarm", "alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE}, &pb.AlarmResponse{}),
		token(maintenance("Status", "status", &pb.StatusRequest{}, &pb.StatusResponse{})),
		maintenance("Defragment", "defragment", &pb.DefragmentRequest{}, &pb.DefragmentResponse{}),
		maintenance("Hash", "hash", &pb.HashRequest{}, &pb.HashResponse{}),
		maintenance("HashKV", "hashkv", &pb.HashKVRequest{}, &pb.HashKVResponse{}),
		maintenance("MoveLeader", "transfer-leadership", &pb.MoveLeaderRequest{TargetID: 1}, &pb.MoveLeaderResponse{}),
		maintenance("Downgrade", "downgrade", &pb.DowngradeRequest{Version: "3.6"}, &pb.DowngradeResponse{}),

		administer("AuthEnable", "enable", &pb.AuthEnableRequest{}, &pb.AuthEnableResponse{}),
		administer("AuthDisable", "disable", &pb.AuthDisableRequest{}, &pb.AuthDisableResponse{}),
		administer("UserAdd", "user/add", &pb.AuthUserAddRequest{Name: "x", Password: "x"}, &pb.AuthUserAddResponse{}),
		administer("UserGet", "user/get", &pb.AuthUserGetRequest{Name: "root"}, &pb.AuthUserGetResponse{}),
		administer("UserList", "user/list", &pb.AuthUserListRequest{}, &pb.AuthUserListResponse{}),
		administer("UserDelete", "user/delete", &pb.AuthUserDeleteRequest{Name: "root"}, &pb.AuthUserDeleteResponse{}),
		administer("UserChangePassword", "user/changepw", &pb.AuthUserChangePasswordRequest{Name: "mallory", Password: "x"}, &pb.AuthUserChangePasswordResponse{}),
		administer("UserGrantRole", "user/grant", &pb.AuthUserGrantRoleRequest{User: "mallory", Role: "root"}, &pb.AuthUserGrantRoleResponse{}),
		administer("UserRevokeRole", "user/revoke", &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"}, &pb.AuthUserRevokeRoleResponse{}),
		administer("RoleAdd", "role/add", &pb.AuthRoleAddRequest{Name: "x"}, &pb.AuthRoleAddResponse{}),
		administer("RoleGet", "role/get", &pb.AuthRoleGetRequest{Role: "root"}, &pb.AuthRoleGetResponse{}),
		administer("RoleList", "role/list", &pb.AuthRoleListRequest{}, &pb.AuthRoleListResponse{}),
		administer("RoleDelete", "role/delete", &pb.AuthRoleDeleteRequest{Role: "mallory"}, &pb.AuthRoleDeleteResponse{}),
		administer("RoleGrantPermission", "role/grant", &pb.AuthRoleGrantPermissionRequest{Name: "mallory", Perm: &authpb.Permission{Key: secret}}, &pb.AuthRoleGrantPermissionResponse{}),
		administer("RoleRevokePermission", "role/revoke", &pb.AuthRoleRevokePermissionRequest{Role: "mallory", Key: mine}, &pb.AuthRoleRevokePermissionResponse{}),
	}
}

// TestAuthAttacks makes the calls by which users came past their rights in some version of etcd,
// and those like them, at the gRPC port and at the gateway, as a user, as nobody and with a made-up
// token. All are refused, in etcd's words.
func TestAuthAttacks(t *testing.T) {
	t.Parallel()
	parties := startAuth(t)
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			for _, who := range []string{"mallory", "", "forged"} {
				for _, way := range []func(*party, attack, string) (string, bool, error){overGRPC, overGateway} {
					var answers [2]string
					for i, p := range parties {
						p.tokens["forged"] = "abcdefghijklmnop.1"
						text, refused, err := way(p, a, who)
						if err != nil {
							t.Fatal(err)
						}
						answers[i] = text
						if want := !a.anybody || who != "mallory"; refused != want {
							t.Errorf("%s, as %q: refused is %v: %s", p.LogPath, who, refused, text)
						}
					}
					if answers[0] != answers[1] {
						t.Errorf("as %q\nbelay: %s\netcd:  %s", who, answers[0], answers[1])
					}
				}
			}
		})
	}
	t.Run("watch beyond (GHSA-xg4h-6gfc-h4m8)", func(t *testing.T) { watchAttacks(t, parties) })
	t.Run("keep alive of a lease with another's key (GHSA-q8m4-xhhv-38mg)", func(t *testing.T) { keepAliveAttacks(t, parties) })
	t.Run("snapshot", func(t *testing.T) { snapshotAttacks(t, parties) })
	t.Run("election and lock", func(t *testing.T) { lockAttacks(t, parties) })
	t.Run("an alarm does not open the door (etcd 22386)", func(t *testing.T) { underAlarm(t, parties) })
	for _, p := range parties {
		r, err := pb.NewKVClient(p.conn).Range(p.ctx("root"), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		p.must(err)
		if len(r.Kvs) != 2 || string(r.Kvs[1].Value) != "what secret holds" || r.Kvs[1].ModRevision > 3 {
			t.Errorf("%s: %v", p.LogPath, r.Kvs)
		}
	}
}

func overGRPC(p *party, a attack, who string) (text string, refused bool, err error) {
	response := proto.Clone(a.response)
	if err := p.conn.Invoke(p.ctx(who), a.method, a.request, response); err != nil {
		return fmt.Sprint(status.Code(err), " ", status.Convert(err).Message()), true, nil
	}
	return "an answer", false, nil
}

func overGateway(p *party, a attack, who string) (text string, refused bool, err error) {
	body, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(a.request)
	if err != nil {
		return "", false, err
	}
	c := httpCase{path: a.path, body: string(body)}
	if token := p.tokens[who]; token != "" {
		c.header = "Authorization: " + token
	}
	text, err = c.ask(http.DefaultClient, p.ClientURL)
	if err == nil && strings.HasPrefix(text, "200") {
		return "an answer", false, nil
	}
	return text, true, err
}

// overWebsocket sends requests and reads so many messages.
func overWebsocket(p *party, path, token string, cookie bool, messages int, requests ...proto.Message) (string, error) {
	header := http.Header{}
	switch {
	case token == "":
	case cookie:
		header.Set("Cookie", "token="+token)
	default:
		header.Set("Sec-WebSocket-Protocol", "Bearer, "+token)
	}
	conn, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(p.ClientURL, "http")+path, header)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	resp.Body.Close()
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	for _, r := range requests {
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r)
		if err != nil {
			return "", err
		}
		if err := conn.WriteMessage(websocket.TextMessage, b); err != nil {
			return "", err
		}
	}
	var out strings.Builder
	for range messages {
		_, message, err := conn.ReadMessage()
		if err != nil {
			return "", fmt.Errorf("after %q: %w", out.String(), err)
		}
		out.WriteString(plainJSON(string(message)) + "\n")
	}
	return out.String(), nil
}

// GHSA-xg4h-6gfc-h4m8: a user who may read one key could watch all keys from it on. A watch is
// judged for exactly its range: the first of each group is refused, and what root then writes
// reaches only a watch of "mine".
func watchAttacks(t *testing.T, parties [2]*party) {
	create := func(key, end string) *pb.WatchRequest {
		return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte(key), RangeEnd: []byte(end), StartRevision: 1, PrevKv: true}}}
	}
	for _, beyond := range []*pb.WatchRequest{
		create("mine", "\x00"), create("", ""), create("", "\x00"), create("\x00", "\x00"), create("secret", ""), create("mine", "minf"), create("m", "mine\x00"),
		create("mine", "mine\x00\x00"), create("a", ""), create("secret", "\x00"),
	} {
		r := beyond.GetCreateRequest()
		name := fmt.Sprintf("[%q, %q)", r.Key, r.RangeEnd)
		for _, who := range []string{"mallory", "", "forged"} {
			var answers [2][]string
			for i, p := range parties {
				stream, err := pb.NewWatchClient(p.conn).Watch(p.ctx(who))
				p.must(err)
				p.must(stream.Send(beyond))
				p.must(stream.Send(create("mine", "")))
				for range 2 {
					resp, err := stream.Recv()
					p.must(err)
					resp.Header = nil
					if len(resp.Events) > 0 {
						resp.Events = resp.Events[:1] // what "mine" has, if mallory asks
					}
					answers[i] = append(answers[i], oneLine(resp))
				}
				p.must(stream.CloseSend())
				if !strings.Contains(answers[i][0], "canceled") {
					t.Errorf("%s: %s as %q over gRPC: %s", p.LogPath, name, who, answers[i])
				}

				b, err := protojson.Marshal(beyond)
				p.must(err)
				c := httpCase{path: "/v3/watch", body: string(b), lines: 1}
				if who != "" {
					c.header = "Authorization: " + p.tokens[who]
				}
				text, err := c.ask(http.DefaultClient, p.ClientURL)
				p.must(err)
				answers[i] = append(answers[i], text)
				if !strings.Contains(text, `"canceled":true`) {
					t.Errorf("%s: %s as %q over the gateway: %s", p.LogPath, name, who, text)
				}
				for _, cookie := range []bool{false, true} {
					text, err := overWebsocket(p, "/v3/watch", p.tokens[who], cookie, 1, beyond)
					p.must(err)
					answers[i] = append(answers[i], text)
					if !strings.Contains(text, `"canceled":true`) {
						t.Errorf("%s: %s as %q over a websocket: %s", p.LogPath, name, who, text)
					}
				}
			}
			for n := range answers[0] {
				if answers[0][n] != answers[1][n] {
					t.Errorf("%s as %q\nbelay: %s\netcd:  %s", name, who, answers[0][n], answers[1][n])
				}
			}
		}
	}
	// And the way in works: a watch of one's own key, over each way.
	own := create("mine", "")
	var answers [2]string
	for i, p := range parties {
		for _, cookie := range []bool{false, true} {
			text, err := overWebsocket(p, "/v3/watch", p.tokens["mallory"], cookie, 2, own)
			p.must(err)
			answers[i] += text
		}
	}
	if answers[0] != answers[1] || !strings.Contains(answers[0], `"events"`) {
		t.Errorf("own key over a websocket\nbelay: %s\netcd:  %s", answers[0], answers[1])
	}
}

func keepAliveAttacks(t *testing.T, parties [2]*party) {
	for _, who := range []string{"mallory", "", "forged"} {
		var answers [2]string
		for i, p := range parties {
			stream, err := pb.NewLeaseClient(p.conn).LeaseKeepAlive(p.ctx(who))
			p.must(err)
			p.must(stream.Send(&pb.LeaseKeepAliveRequest{ID: 7}))
			_, err = stream.Recv()
			answers[i] = fmt.Sprintln(err)
			if err == nil {
				t.Errorf("%s: as %q: renewed", p.LogPath, who)
			}
			c := httpCase{path: "/v3/lease/keepalive", body: `{"ID":"7"}`}
			if who != "" {
				c.header = "Authorization: " + p.tokens[who]
			}
			text, err := c.ask(http.DefaultClient, p.ClientURL)
			p.must(err)
			socket, err := overWebsocket(p, "/v3/lease/keepalive", p.tokens[who], false, 1, &pb.LeaseKeepAliveRequest{ID: 7})
			p.must(err)
			answers[i] += text + socket
			if !strings.Contains(text, "etcdserver: ") || !strings.Contains(socket, "etcdserver: ") {
				t.Errorf("%s: as %q: %s %s", p.LogPath, who, text, socket)
			}
		}
		if answers[0] != answers[1] {
			t.Errorf("as %q\nbelay: %s\netcd:  %s", who, answers[0], answers[1])
		}
	}
}

func snapshotAttacks(t *testing.T, parties [2]*party) {
	for _, who := range []string{"mallory", "", "forged"} {
		var answers [2]string
		for i, p := range parties {
			stream, err := pb.NewMaintenanceClient(p.conn).Snapshot(p.ctx(who), &pb.SnapshotRequest{})
			p.must(err)
			_, err = stream.Recv()
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%s: as %q: %v", p.LogPath, who, err)
			}
			c := httpCase{path: "/v3/maintenance/snapshot", body: "{}"}
			if who != "" {
				c.header = "Authorization: " + p.tokens[who]
			}
			text, err2 := c.ask(http.DefaultClient, p.ClientURL)
			p.must(err2)
			answers[i] = fmt.Sprintln(err, text)
			if strings.Contains(text, "blob") {
				t.Errorf("%s: as %q: a snapshot over the gateway", p.LogPath, who)
			}
		}
		if answers[0] != answers[1] {
			t.Errorf("as %q\nbelay: %s\netcd:  %s", who, answers[0], answers[1])
		}
	}
}

// Lock, Election and the others that act in the caller's name.
func lockAttacks(t *testing.T, parties [2]*party) {
	// etcd ends an Observe without the right to read without an answer and without an error; here
	// there is an error.
	for _, who := range []string{"mallory", "", "forged"} {
		c := httpCase{path: "/v3/election/observe", body: `{"name":"c2VjcmV0"}`}
		if who != "" {
			c.header = "Authorization: " + parties[0].tokens[who]
		}
		if text, err := c.ask(http.DefaultClient, parties[0].ClientURL); err != nil || !strings.Contains(text, "etcdserver: ") {
			t.Errorf("observe as %q: %s %v", who, text, err)
		}
	}
	for _, c := range []httpCase{
		{path: "/v3/lock/lock", body: `{"name":"c2VjcmV0","lease":"8"}`},
		{path: "/v3/lock/unlock", body: `{"key":"c2VjcmV0"}`},
		{path: "/v3/election/campaign", body: `{"name":"c2VjcmV0","lease":"8","value":"eA=="}`},
		{path: "/v3/election/leader", body: `{"name":"c2VjcmV0"}`},
		{path: "/v3/election/proclaim", body: `{"leader":{"name":"c2VjcmV0","key":"c2VjcmV0","rev":"3","lease":"7"},"value":"eA=="}`},
		{path: "/v3/election/resign", body: `{"leader":{"name":"c2VjcmV0","key":"c2VjcmV0","rev":"3","lease":"7"}}`},
	} {
		for _, who := range []string{"mallory", "", "forged"} {
			var answers [2]string
			for i, p := range parties {
				c.header = ""
				if who != "" {
					c.header = "Authorization: " + p.tokens[who]
				}
				var err error
				answers[i], err = c.ask(http.DefaultClient, p.ClientURL)
				p.must(err)
				if strings.HasPrefix(answers[i], "200") && !strings.Contains(answers[i], "error") {
					t.Errorf("%s: %s as %q: %s", p.LogPath, c, who, answers[i])
				}
			}
			if answers[0] != answers[1] {
				t.Errorf("%s as %q\nbelay: %s\netcd:  %s", c, who, answers[0], answers[1])
			}
		}
	}
}

// While there is no space etcd 3.5 judged nobody; see its pull request 22386.
func underAlarm(t *testing.T, parties [2]*party) {
	for _, p := range parties {
		alarm := func(action pb.AlarmRequest_AlarmAction) {
			_, err := pb.NewMaintenanceClient(p.conn).Alarm(p.ctx("root"), &pb.AlarmRequest{Action: action, Alarm: pb.AlarmType_NOSPACE})
			p.must(err)
		}
		alarm(pb.AlarmRequest_ACTIVATE)
		for _, a := range attacks() {
			if a.anybody {
				continue
			}
			if text, refused, err := overGRPC(p, a, "mallory"); err != nil || !refused {
				t.Errorf("%s: %s: %s %v", p.LogPath, a.name, text, err)
			}
		}
		alarm(pb.AlarmRequest_DEACTIVATE)
	}
}

// Passwords are in no log line and on no page of a member that says all it can (CVE-2021-28235:
// they were).
func TestAuthPasswordsAreNotTold(t *testing.T) {
	t.Parallel()
	belay, _ := startBoth(t, func(c *cluster.Config) {
		c.Args = []string{"--bcrypt-cost=4", "--log-level=debug", "--warning-unary-request-duration=1ns", "--warning-apply-duration=1ns", "--enable-pprof"}
	})
	p := newParty(t, belay)
	p.populate()
	const password = "not-to-be-told"
	admin := pb.NewAuthClient(p.conn)
	_, err := admin.UserAdd(p.ctx("root"), &pb.AuthUserAddRequest{Name: "carol", Password: password})
	p.must(err)
	_, err = admin.UserAdd(p.ctx("root"), &pb.AuthUserAddRequest{Name: "carol", Password: password})
	if err == nil {
		t.Error("added twice")
	}
	_, err = admin.UserChangePassword(p.ctx("root"), &pb.AuthUserChangePasswordRequest{Name: "mallory", Password: password})
	p.must(err)
	r, err := admin.Authenticate(t.Context(), &pb.AuthenticateRequest{Name: "mallory", Password: password})
	p.must(err)
	if _, err := admin.Authenticate(t.Context(), &pb.AuthenticateRequest{Name: "root", Password: password}); err == nil {
		t.Error("a wrong password is good")
	}
	told := p.logText()
	for _, path := range []string{"/debug/vars", "/debug/requests", "/metrics", "/debug/pprof/cmdline"} {
		body, err := getBody(t.Context(), p.ClientURL+path)
		p.must(err)
		told += string(body)
	}
	for what, secret := range map[string]string{"a password": password, "a token": r.Token, "the start of a token": r.Token[:16]} {
		if strings.Contains(told, secret) {
			i := strings.Index(told, secret)
			t.Errorf("%s is told: %s", what, told[max(0, i-300):min(len(told), i+100)])
		}
	}
	if !strings.Contains(told, `"request stats"`) || !strings.Contains(told, `"authenticated a user"`) {
		t.Error("the log does not say all that it could")
	}
}

// A token that nobody uses ends with --auth-token-ttl; one that is used lives on.
func TestAuthTokenTTL(t *testing.T) {
	t.Parallel()
	parties := startAuth(t, "--auth-token-ttl=2")
	var running sync.WaitGroup
	for _, p := range parties {
		running.Go(func() {
			kv := pb.NewKVClient(p.conn)
			idle := p.tokens["root"]
			// As long as half a TTL passes between two uses, mallory's lives, while root's, which
			// nobody uses, is past its end.
			p.login("mallory")
			used := time.Now()
			for begin := used; time.Since(begin) < 4*time.Second; time.Sleep(100 * time.Millisecond) {
				if _, err := kv.Range(p.ctx("mallory"), &pb.RangeRequest{Key: []byte("mine")}); err != nil && time.Since(used) < time.Second {
					t.Errorf("%s: a token in use: %v", p.LogPath, err)
					return
				} else if err != nil { // the machine slept
					p.login("mallory")
				}
				used = time.Now()
			}
			p.tokens["idle"] = idle
			_, err := kv.Range(p.ctx("idle"), &pb.RangeRequest{Key: []byte("mine")})
			if got, want := fmt.Sprint(err), "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"; got != want {
				t.Errorf("%s: an idle token: %s", p.LogPath, got)
			}
		})
	}
	running.Wait()
}

// logText is what the member has logged.
func (p *party) logText() string {
	p.t.Helper()
	b, err := os.ReadFile(p.LogPath)
	p.must(err)
	return string(b)
}

// authHour is the part of an operator's day in which authentication is on.
func authHour(ctx context.Context, conn *grpc.ClientConn) error {
	admin, kv := pb.NewAuthClient(conn), pb.NewKVClient(conn)
	root, user := ctx, ctx
	// A wanted text is that of the error.
	var failed error
	do := func(want string, err error) {
		if (want == "") != (err == nil) || want != "" && !strings.Contains(err.Error(), want) {
			failed = errors.Join(failed, fmt.Errorf("wanted %q: %w", want, err))
		}
	}
	call := func(ctx context.Context, want string, f func(context.Context) error) { do(want, f(ctx)) }
	for _, name := range []string{"root", "user"} {
		_, err := admin.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Password: name})
		do("", err)
		_, err = admin.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: name})
		do("", err)
		for range 2 {
			_, err = admin.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: name})
			do("", err)
		}
	}
	_, err := admin.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "user", Perm: &authpb.Permission{Key: []byte("key"), RangeEnd: []byte("kez"), PermType: authpb.Permission_READWRITE}})
	do("", err)
	for range 2 {
		_, err = admin.AuthEnable(root, &pb.AuthEnableRequest{})
		if err != nil {
			return err
		}
		for name, as := range map[string]*context.Context{"root": &root, "user": &user} {
			r, err := admin.Authenticate(ctx, &pb.AuthenticateRequest{Name: name, Password: name})
			if err != nil {
				return err
			}
			*as = metadata.AppendToOutgoingContext(ctx, "token", r.Token)
		}
	}
	_, err = admin.Authenticate(ctx, &pb.AuthenticateRequest{Name: "user", Password: "wrong"})
	do("authentication failed", err)
	put := func(key string) func(context.Context) error {
		return func(ctx context.Context) error { _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(key)}); return err }
	}
	call(user, "", put("key1"))
	call(user, "permission denied", put("other"))
	call(ctx, "user name is empty", put("key1"))
	call(metadata.AppendToOutgoingContext(ctx, "token", "abcdefghijklmnop.1"), "invalid auth token", put("key1"))
	call(user, "permission denied", func(ctx context.Context) error { _, err := admin.UserList(ctx, &pb.AuthUserListRequest{}); return err })
	call(root, "invalid auth management", func(ctx context.Context) error {
		_, err := admin.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: "root"})
		return err
	})
	call(root, "invalid auth management", func(ctx context.Context) error {
		_, err := admin.UserRevokeRole(ctx, &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"})
		return err
	})
	call(root, "invalid auth management", func(ctx context.Context) error {
		_, err := admin.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: "root"})
		return err
	})
	for _, r := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := admin.AuthStatus(ctx, &pb.AuthStatusRequest{}); return err },
		func(ctx context.Context) error { _, err := admin.UserList(ctx, &pb.AuthUserListRequest{}); return err },
		func(ctx context.Context) error { _, err := admin.RoleList(ctx, &pb.AuthRoleListRequest{}); return err },
		func(ctx context.Context) error {
			_, err := admin.UserGet(ctx, &pb.AuthUserGetRequest{Name: "user"})
			return err
		},
		func(ctx context.Context) error {
			_, err := admin.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "user"})
			return err
		},
		func(ctx context.Context) error {
			_, err := admin.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: "user", Password: "x"})
			return err
		},
		func(ctx context.Context) error {
			_, err := admin.RoleRevokePermission(ctx, &pb.AuthRoleRevokePermissionRequest{Role: "user", Key: []byte("key"), RangeEnd: []byte("kez")})
			return err
		},
		func(ctx context.Context) error {
			_, err := admin.UserRevokeRole(ctx, &pb.AuthUserRevokeRoleRequest{Name: "user", Role: "user"})
			return err
		},
		func(ctx context.Context) error {
			_, err := admin.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: "user"})
			return err
		},
		func(ctx context.Context) error {
			_, err := admin.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: "user"})
			return err
		},
		func(ctx context.Context) error {
			_, err := admin.AuthDisable(ctx, &pb.AuthDisableRequest{})
			return err
		},
	} {
		call(root, "", r)
	}
	return failed
}
