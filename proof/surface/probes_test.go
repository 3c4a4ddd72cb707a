package surface

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/config"
	"github.com/belaydb/belay/server/electionpb"
)

// A subject is what the probes ask: a running member and what it is made of.
type subject struct {
	member
	ctx  context.Context
	conn *grpc.ClientConn
	src  source
	dir  string
}

// A probe checks what a row promises, and returns an error if it is not so. Probes whose name
// begins with "no-" look for what is said to be missing: an error means that it exists now.
type probe func(s *subject) error

func want(what string, have, want any) error {
	if fmt.Sprint(have) != fmt.Sprint(want) {
		return fmt.Errorf("%s: %v, want %v", what, have, want)
	}
	return nil
}

// refusal wants an error whose text, as etcd's clients print it, has want in it.
func refusal(what string, err error, code codes.Code, want string) error {
	if s := status.Convert(err); err == nil || s.Code() != code || !strings.Contains(s.Message(), want) {
		return fmt.Errorf("%s: %v, want %v %q", what, err, code, want)
	}
	return nil
}

func (s *subject) kv() pb.KVClient { return pb.NewKVClient(s.conn) }

func (s *subject) put(key, value string) (*pb.PutResponse, error) {
	return s.kv().Put(s.ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
}

// three puts PREFIX1, PREFIX2 and PREFIX3 and returns the revision of the first.
func (s *subject) three(prefix string) (int64, error) {
	var first int64
	for i := range 3 {
		r, err := s.put(fmt.Sprint(prefix, i+1), fmt.Sprint(9-i))
		if err != nil {
			return 0, err
		}
		if i == 0 {
			first = r.Header.Revision
		}
	}
	return first, nil
}

func (s *subject) get(base, path, body string) (int, string, error) {
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(s.ctx, method, "http://"+base+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// starts wants the flags to be taken with these variables, and the texts in what was logged; or,
// with code above 0, refused.
func starts(code int, environ, args []string, texts ...string) error {
	var out, errs, lines bytes.Buffer
	_, lg, have, ok := config.Load(config.Options{
		Program: config.Belay, Version: "test", Command: args, Args: args, Environ: environ, Stdout: &out, Stderr: &errs, LogWriter: &lines,
	})
	if lg != nil {
		_ = lg.Close()
	}
	said := errs.String() + lines.String()
	if ok != (code == 0) || have != code {
		return fmt.Errorf("%q %q: taken %v, code %d, want %d: %s", environ, args, ok, have, code, said)
	}
	for _, text := range texts {
		if !strings.Contains(said, text) {
			return fmt.Errorf("%q %q: %q is not in %s", environ, args, text, said)
		}
	}
	return nil
}

func (s *subject) missing(texts ...string) error {
	for _, text := range texts {
		if s.src.texts[text] {
			return fmt.Errorf("%q is in the code now", text)
		}
	}
	return nil
}

// probes are those that tried.txt names.
func probes() map[string]probe {
	return map[string]probe{
		"header": func(s *subject) error {
			p, err := s.put("header", "1")
			if err != nil {
				return err
			}
			m, err := pb.NewClusterClient(s.conn).MemberList(s.ctx, &pb.MemberListRequest{})
			if err != nil {
				return err
			}
			d, err := pb.NewMaintenanceClient(s.conn).Defragment(s.ctx, &pb.DefragmentRequest{})
			if err != nil {
				return err
			}
			h := p.Header
			return errors.Join(want("fields", h.ClusterId != 0 && h.MemberId != 0 && h.Revision > 1 && h.RaftTerm > 0, true),
				want("revision of MemberList", m.Header.Revision, 0), want("header of Defragment", d.Header == nil, true))
		},
		"client-api-version": func(s *subject) error {
			_, err := s.kv().Range(metadata.AppendToOutgoingContext(s.ctx, "client-api-version", "3.7.1-probe"), &pb.RangeRequest{Key: []byte("x")})
			if err != nil {
				return err
			}
			_, text, err := s.get(s.client, "/metrics", "")
			return errors.Join(err, want("series", strings.Contains(text, `client_api_version="3.7.1-probe"`), true))
		},
		"too-many-pings": func(s *subject) error {
			// grpc's own client does not ping that often: frames by hand.
			conn, err := net.Dial("tcp", s.client)
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				return err
			}
			if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
				return err
			}
			framer := http2.NewFramer(conn, conn)
			if err := framer.WriteSettings(); err != nil {
				return err
			}
			for range 5 {
				if err := framer.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
			for {
				f, err := framer.ReadFrame()
				if err != nil {
					return err
				}
				if away, ok := f.(*http2.GoAwayFrame); ok {
					return want("GOAWAY", fmt.Sprint(away.ErrCode, " ", string(away.DebugData())), "ENHANCE_YOUR_CALM too_many_pings")
				}
			}
		},
		"message-limits": func(s *subject) error {
			_, large := s.put("large", strings.Repeat("x", 1572864))
			_, larger := s.put("larger", strings.Repeat("x", 1572864+512<<10+1))
			ops := make([]*pb.RequestOp, 129)
			for i := range ops {
				ops[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("x")}}}
			}
			_, many := s.kv().Txn(s.ctx, &pb.TxnRequest{Success: ops})
			return errors.Join(refusal("1.5 MiB", large, codes.InvalidArgument, "etcdserver: request is too large"),
				refusal("2 MiB", larger, codes.ResourceExhausted, "larger than max"),
				refusal("129 operations", many, codes.InvalidArgument, "too many operations in txn request"))
		},
		"range": func(s *subject) error {
			first, err := s.three("range")
			if err != nil {
				return err
			}
			all := func(change func(*pb.RangeRequest)) (string, error) {
				r := &pb.RangeRequest{Key: []byte("range"), RangeEnd: []byte("rangf")}
				change(r)
				resp, err := s.kv().Range(s.ctx, r)
				if err != nil {
					return "", err
				}
				text := fmt.Sprint(resp.Count, resp.More)
				for _, kv := range resp.Kvs {
					text += fmt.Sprintf(" %s=%s", kv.Key, kv.Value)
				}
				return text, nil
			}
			var errs []error
			for _, tc := range []struct {
				name   string
				change func(*pb.RangeRequest)
				want   string
			}{
				{"limit", func(r *pb.RangeRequest) { r.Limit = 2 }, "3 true range1=9 range2=8"},
				{"revision", func(r *pb.RangeRequest) { r.Revision = first }, "1 false range1=9"},
				{"order", func(r *pb.RangeRequest) { r.SortOrder = pb.RangeRequest_DESCEND }, "3 false range3=7 range2=8 range1=9"},
				{"target", func(r *pb.RangeRequest) {
					r.SortOrder, r.SortTarget = pb.RangeRequest_ASCEND, pb.RangeRequest_VALUE
				}, "3 false range3=7 range2=8 range1=9"},
				{"keys_only", func(r *pb.RangeRequest) { r.KeysOnly = true }, "3 false range1= range2= range3="},
				{"count_only", func(r *pb.RangeRequest) { r.CountOnly = true }, "3 false"},
				{"serializable", func(r *pb.RangeRequest) { r.Serializable, r.Limit = true, 1 }, "3 true range1=9"},
				{"min_mod_revision", func(r *pb.RangeRequest) { r.MinModRevision = first + 2 }, "3 false range3=7"},
				{"max_create_revision", func(r *pb.RangeRequest) { r.MaxCreateRevision = first }, "3 false range1=9"},
			} {
				have, err := all(tc.change)
				errs = append(errs, err, want(tc.name, have, tc.want))
			}
			_, err = s.kv().Range(s.ctx, &pb.RangeRequest{})
			_, future := s.kv().Range(s.ctx, &pb.RangeRequest{Key: []byte("x"), Revision: first + 1000})
			return errors.Join(append(errs, refusal("no key", err, codes.InvalidArgument, "etcdserver: key is not provided"),
				refusal("future", future, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"))...)
		},
		"range-stream": func(s *subject) error {
			if _, err := s.three("stream"); err != nil {
				return err
			}
			read := func(r *pb.RangeRequest) (keys int, err error) {
				stream, err := s.kv().RangeStream(s.ctx, r)
				if err != nil {
					return 0, err
				}
				for {
					m, err := stream.Recv()
					if err == io.EOF {
						return keys, nil
					} else if err != nil {
						return keys, err
					}
					keys += len(m.GetRangeResponse().GetKvs())
				}
			}
			r := &pb.RangeRequest{Key: []byte("stream"), RangeEnd: []byte("streao")}
			keys, err := read(r)
			_, sorted := read(&pb.RangeRequest{Key: []byte("a"), SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_VALUE})
			return errors.Join(err, want("keys", keys, 3), want("a sort", status.Code(sorted), codes.Unimplemented))
		},
		"put": func(s *subject) error {
			if _, err := s.put("put", "1"); err != nil {
				return err
			}
			prev, err := s.kv().Put(s.ctx, &pb.PutRequest{Key: []byte("put"), Value: []byte("2"), PrevKv: true})
			_, both := s.kv().Put(s.ctx, &pb.PutRequest{Key: []byte("put"), Value: []byte("2"), IgnoreValue: true})
			_, absent := s.kv().Put(s.ctx, &pb.PutRequest{Key: []byte("put-absent"), IgnoreValue: true})
			_, lease := s.kv().Put(s.ctx, &pb.PutRequest{Key: []byte("put"), Lease: 77})
			return errors.Join(err, want("prev_kv", string(prev.GetPrevKv().GetValue()), "1"),
				refusal("ignore_value", both, codes.InvalidArgument, "etcdserver: value is provided"),
				refusal("ignore_value of nothing", absent, codes.InvalidArgument, "etcdserver: key not found"),
				refusal("lease", lease, codes.NotFound, "etcdserver: requested lease not found"))
		},
		"delete": func(s *subject) error {
			if _, err := s.three("delete"); err != nil {
				return err
			}
			r, err := s.kv().DeleteRange(s.ctx, &pb.DeleteRangeRequest{Key: []byte("delete"), RangeEnd: []byte("deletf"), PrevKv: true})
			return errors.Join(err, want("deleted", r.GetDeleted(), 3), want("prev_kvs", len(r.GetPrevKvs()), 3))
		},
		"txn": func(s *subject) error {
			op := func(key string) *pb.RequestOp {
				return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
			}
			nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{op("txn2")}}}}
			r, err := s.kv().Txn(s.ctx, &pb.TxnRequest{
				Compare: []*pb.Compare{{Key: []byte("txn1"), Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_CreateRevision{}}},
				Success: []*pb.RequestOp{op("txn1"), nested}, Failure: []*pb.RequestOp{op("txn3")},
			})
			_, twice := s.kv().Txn(s.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{op("txn1"), op("txn1")}})
			_, empty := s.kv().Txn(s.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{}}})
			return errors.Join(err, want("succeeded", r.GetSucceeded(), true), want("responses", len(r.GetResponses()), 2),
				refusal("twice", twice, codes.InvalidArgument, "etcdserver: duplicate key given in txn request"),
				refusal("empty operation", empty, codes.InvalidArgument, "etcdserver: key not found"))
		},
		"compact": func(s *subject) error {
			rev, err := s.three("compact")
			if err != nil {
				return err
			}
			if _, err := s.kv().Compact(s.ctx, &pb.CompactionRequest{Revision: rev, Physical: true}); err != nil {
				return err
			}
			_, again := s.kv().Compact(s.ctx, &pb.CompactionRequest{Revision: rev})
			_, future := s.kv().Compact(s.ctx, &pb.CompactionRequest{Revision: rev + 1000})
			_, old := s.kv().Range(s.ctx, &pb.RangeRequest{Key: []byte("x"), Revision: rev - 1})
			return errors.Join(refusal("again", again, codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
				refusal("future", future, codes.OutOfRange, "future revision"), refusal("read", old, codes.OutOfRange, "compacted"))
		},
		"watch": func(s *subject) error {
			rev, err := s.three("watch")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(s.ctx)
			defer cancel()
			stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
			if err != nil {
				return err
			}
			create := func(r *pb.WatchCreateRequest) (*pb.WatchResponse, error) {
				if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
					return nil, err
				}
				return stream.Recv()
			}
			created, err := create(&pb.WatchCreateRequest{Key: []byte("watch"), RangeEnd: []byte("watci"), StartRevision: rev, WatchId: 7})
			if err != nil {
				return err
			}
			events := 0
			for events < 3 {
				r, err := stream.Recv()
				if err != nil {
					return err
				}
				events += len(r.Events)
			}
			if _, err := s.kv().Compact(s.ctx, &pb.CompactionRequest{Revision: rev + 2}); err != nil {
				return err
			}
			if _, err := create(&pb.WatchCreateRequest{Key: []byte("watch"), StartRevision: rev}); err != nil {
				return err
			}
			old, err := stream.Recv()
			return errors.Join(err, want("created", created.Created, true), want("watch_id", created.WatchId, 7), want("events", events, 3),
				want("compacted", old.GetCompactRevision(), rev+2), want("canceled", old.GetCanceled(), true))
		},
		"lease": func(s *subject) error {
			client := pb.NewLeaseClient(s.conn)
			_, large := client.LeaseGrant(s.ctx, &pb.LeaseGrantRequest{TTL: 9_000_000_001})
			small, err := client.LeaseGrant(s.ctx, &pb.LeaseGrantRequest{TTL: 0})
			if err != nil {
				return err
			}
			_, exists := client.LeaseGrant(s.ctx, &pb.LeaseGrantRequest{TTL: 5, ID: small.ID})
			none, err := client.LeaseTimeToLive(s.ctx, &pb.LeaseTimeToLiveRequest{ID: 99})
			list, err2 := client.LeaseLeases(s.ctx, &pb.LeaseLeasesRequest{})
			return errors.Join(err, err2, refusal("TTL", large, codes.OutOfRange, "etcdserver: too large lease TTL"), want("clamped", small.TTL > 0, true),
				refusal("ID", exists, codes.FailedPrecondition, "etcdserver: lease already exists"), want("missing", none.GetTTL(), -1), want("leases", len(list.GetLeases()) > 0, true))
		},
		"members": func(s *subject) error {
			client := pb.NewClusterClient(s.conn)
			_, bad := client.MemberAdd(s.ctx, &pb.MemberAddRequest{PeerURLs: []string{"odd"}})
			_, twice := client.MemberAdd(s.ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://" + s.peer}})
			_, none := client.MemberRemove(s.ctx, &pb.MemberRemoveRequest{ID: 9})
			return errors.Join(refusal("URL", bad, codes.InvalidArgument, "etcdserver: given member URLs are invalid"),
				refusal("duplicate", twice, codes.FailedPrecondition, "etcdserver: Peer URLs already exists"), refusal("remove", none, codes.NotFound, "etcdserver: member not found"))
		},
		"alarm": func(s *subject) error {
			client := pb.NewMaintenanceClient(s.conn)
			st, err := client.Status(s.ctx, &pb.StatusRequest{})
			if err != nil {
				return err
			}
			a := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: st.Header.MemberId, Alarm: pb.AlarmType_NOSPACE}
			if _, err := client.Alarm(s.ctx, a); err != nil {
				return err
			}
			_, put := s.put("alarm", "1")
			_, lease := pb.NewLeaseClient(s.conn).LeaseGrant(s.ctx, &pb.LeaseGrantRequest{TTL: 5})
			_, del := s.kv().DeleteRange(s.ctx, &pb.DeleteRangeRequest{Key: []byte("alarm")})
			a.Action = pb.AlarmRequest_DEACTIVATE
			_, err = client.Alarm(s.ctx, a)
			_, after := s.put("alarm", "1")
			return errors.Join(err, refusal("put", put, codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
				refusal("lease", lease, codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded"), want("delete", del, nil), want("put after", after, nil))
		},
		"status": func(s *subject) error {
			st, err := pb.NewMaintenanceClient(s.conn).Status(s.ctx, &pb.StatusRequest{})
			return errors.Join(err, want("fields", st.GetVersion() != "" && st.GetDbSize() > 0 && st.GetLeader() != 0 && st.GetRaftIndex() > 0 && st.GetRaftTerm() > 0 &&
				st.GetRaftAppliedIndex() > 0 && st.GetStorageVersion() != "" && st.GetDbSizeQuota() > 0, true))
		},
		"hash": func(s *subject) error {
			client := pb.NewMaintenanceClient(s.conn)
			h, err := client.Hash(s.ctx, &pb.HashRequest{})
			kv, err2 := client.HashKV(s.ctx, &pb.HashKVRequest{})
			return errors.Join(err, err2, want("hashes", h.GetHash() != 0 && kv.GetHash() != 0 && kv.GetHashRevision() > 0, true))
		},
		"snapshot": func(s *subject) error {
			stream, err := pb.NewMaintenanceClient(s.conn).Snapshot(s.ctx, &pb.SnapshotRequest{})
			if err != nil {
				return err
			}
			var all []byte
			for {
				m, err := stream.Recv()
				if err == io.EOF {
					break
				} else if err != nil {
					return err
				}
				all = append(all, m.Blob...)
			}
			if len(all) < 512 {
				return fmt.Errorf("%d bytes", len(all))
			}
			data, sum := all[:len(all)-sha256.Size], all[len(all)-sha256.Size:]
			have := sha256.Sum256(data)
			return errors.Join(want("pages", len(data)%512, 0), want("trailer", bytes.Equal(have[:], sum), true))
		},
		"auth-off": func(s *subject) error {
			client := pb.NewAuthClient(s.conn)
			_, login := client.Authenticate(s.ctx, &pb.AuthenticateRequest{Name: "a", Password: "b"})
			st, err := client.AuthStatus(s.ctx, &pb.AuthStatusRequest{})
			_, off := client.AuthDisable(s.ctx, &pb.AuthDisableRequest{})
			return errors.Join(err, want("enabled", st.GetEnabled(), false), want("AuthDisable", off, nil),
				refusal("Authenticate", login, codes.FailedPrecondition, "etcdserver: authentication is not enabled"))
		},
		"election-errors": func(s *subject) error {
			client := electionpb.NewElectionClient(s.conn)
			_, leader := client.Proclaim(s.ctx, &electionpb.ProclaimRequest{})
			_, none := client.Leader(s.ctx, &electionpb.LeaderRequest{Name: []byte("nobody")})
			return errors.Join(refusal("Proclaim", leader, codes.Unknown, `"leader" field must be provided`), refusal("Leader", none, codes.Unknown, "election: no leader"))
		},
		"http": func(s *subject) error {
			var errs []error
			for path, text := range map[string]string{
				"/version": `"belay":`, "/health": `{"health":"true","reason":""}`, "/livez": "ok", "/readyz?verbose": "[+]disk ok", "/readyz/linearizable_read": "ok",
			} {
				code, body, err := s.get(s.client, path, "")
				errs = append(errs, err, want(path, code, http.StatusOK))
				if !strings.Contains(body, text) {
					errs = append(errs, fmt.Errorf("%s: %q", path, body))
				}
			}
			return errors.Join(errs...)
		},
		"gateway": func(s *subject) error {
			code, body, err := s.get(s.client, "/v3/kv/put", `{"key":"Z2F0ZXdheQ==","value":"MQ=="}`)
			var put struct {
				Header struct {
					Revision string `json:"revision"`
				} `json:"header"`
			}
			return errors.Join(err, want("code", code, http.StatusOK), json.Unmarshal([]byte(body), &put), want("revision as string", put.Header.Revision != "", true))
		},
		"gates": func(*subject) error {
			return errors.Join(
				starts(0, nil, []string{"--feature-gates=FastLeaseKeepAlive=false"}, "feature gate has no effect in Belay - ignoring"),
				starts(0, nil, []string{"--feature-gates=StopGRPCServiceOnDefrag=true"}, "feature gate has no effect in Belay - ignoring"),
				starts(0, nil, []string{"--feature-gates=CompactHashCheck=false,InitialCorruptCheck=true,AllAlpha=true,AllBeta=true,SetMemberLocalAddr=true"}),
				starts(2, nil, []string{"--feature-gates=Odd=true"}, "unrecognized feature gate: Odd"))
		},
		"environment": func(s *subject) error {
			file := filepath.Join(s.dir, "etcd.yaml")
			if err := os.WriteFile(file, []byte("name: x\n"), 0o600); err != nil {
				return err
			}
			return errors.Join(
				starts(0, []string{"ETCD_NAME=a", "ETCD_DATA_DIR=", "ETCD_FOO=1"}, nil, "unrecognized environment variable", "recognized and used environment variable"),
				starts(0, []string{"ETCD_VERSION=3", "ETCD_UNSUPPORTED_ARCH=arm", "ETCD_VERIFY=all"}, nil),
				starts(1, []string{"ETCD_SNAPSHOT_COUNT=x"}, nil, `invalid value "x" for ETCD_SNAPSHOT_COUNT`),
				starts(1, []string{"ETCD_NAME=a"}, []string{"--name=b"}, "conflicting environment variable is shadowed"),
				starts(0, []string{"ETCD_CONFIG_FILE=" + file}, nil), starts(0, []string{"ETCD_FEATURE_GATES=InitialCorruptCheck=true"}, nil),
				starts(2, nil, []string{"--enable-v2"}, "not defined"), starts(2, nil, []string{"--election-timeout"}))
		},
		"config-file": func(s *subject) error {
			file := filepath.Join(s.dir, "more.yaml")
			text := "name: x\nlisten-client-urls: http://127.0.0.1:1\nadvertise-client-urls: http://127.0.0.1:1\nodd-key: 1\ndisk-stall-handover: 8000000000\n"
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				return err
			}
			return errors.Join(starts(0, nil, []string{"--config-file=" + file}, "odd-key"), starts(1, nil, []string{"--config-file=" + file + ".missing"}, "no such file"))
		},
		"sizes": func(s *subject) error {
			return errors.Join(starts(0, nil, []string{"--quota-backend-bytes=10000000000", "--max-request-bytes=20000000"}),
				s.missing("exceeded recommended request limit", "quota exceeds the maximum value"))
		},
		"quota-default": func(s *subject) error {
			_, text, err := s.get(s.client, "/metrics", "")
			return errors.Join(err, want("metric", strings.Contains(text, "\netcd_server_quota_backend_bytes 2.147483648e+09\n"), true))
		},
		"zeros": func(s *subject) error {
			_, text, err := s.get(s.client, "/metrics", "")
			for _, series := range []string{
				`grpc_server_started_total{grpc_method="UserGrantRole",grpc_service="etcdserverpb.Auth",grpc_type="unary"} 0`,
				"etcd_network_snapshot_send_inflights_total", "etcd_debugging_mvcc_keys_total ", "# TYPE etcd_debugging_mvcc_db_compaction_keys_total counter",
			} {
				if !strings.Contains(text, series) && !strings.Contains(series, "snapshot_send") { // that one is made with the first snapshot
					err = errors.Join(err, fmt.Errorf("%s is not on /metrics", series))
				}
			}
			return err
		},
		"nothing-more": func(s *subject) error {
			err := s.conn.Invoke(s.ctx, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &pb.StatusRequest{}, &pb.StatusResponse{})
			errs := []error{want("reflection", status.Code(err), codes.Unimplemented)}
			for base, paths := range map[string][]string{s.client: {"/v2/keys", "/v2/members"}, s.peer: {"/metrics", "/health"}} {
				for _, path := range paths {
					code, _, err := s.get(base, path, "")
					errs = append(errs, err, want(path, code, http.StatusNotFound))
				}
			}
			return errors.Join(errs...)
		},
		"no-bbolt-lines": func(s *subject) error { return want("a logger bbolt", s.src.texts["bbolt"], false) },
		"no-trace-lines": func(s *subject) error {
			return want("steps of a trace", s.src.texts["agreement among raft nodes before linearized reading"], false)
		},
		"no-tick-missed": func(s *subject) error { return s.missing("%x A tick missed to fire. Node blocks too long!") },
	}
}

// ask starts a member and asks every probe once.
func ask(t *testing.T) map[string]error {
	t.Helper()
	m := startMember(t)
	conn, err := grpc.NewClient(m.client, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s := &subject{member: m, ctx: ctx, conn: conn, src: readSource(t), dir: t.TempDir()}
	results := map[string]error{}
	for name, probe := range probes() {
		results[name] = probe(s)
	}
	return results
}
