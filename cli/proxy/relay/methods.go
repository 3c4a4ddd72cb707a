package relay

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/belaydb/belay/server/electionpb" // registers its descriptors
	_ "github.com/belaydb/belay/server/lockpb"
)

// A method is one that the proxy knows.
type method struct {
	full, service, name string
	clientStreams       bool
	serverStreams       bool
	// read: a request may be asked twice.
	read    bool
	request protoreflect.MessageType
	answer  protoreflect.MessageType
	counts  *methodCounts
}

// kind is the method's kind in grpc_server_* metrics.
func (m *method) kind() string {
	switch {
	case m.clientStreams && m.serverStreams:
		return "bidi_stream"
	case m.serverStreams:
		return "server_stream"
	case m.clientStreams:
		return "client_stream"
	}
	return "unary"
}

const (
	watchMethod      = "/etcdserverpb.Watch/Watch"
	keepAliveMethod  = "/etcdserverpb.Lease/LeaseKeepAlive"
	revokeMethod     = "/etcdserverpb.Lease/LeaseRevoke"
	grantMethod      = "/etcdserverpb.Lease/LeaseGrant"
	memberListMethod = "/etcdserverpb.Cluster/MemberList"
	rangeMethod      = "/etcdserverpb.KV/Range"
	rangeStream      = "/etcdserverpb.KV/RangeStream"
	txnMethod        = "/etcdserverpb.KV/Txn"
	putMethod        = "/etcdserverpb.KV/Put"
	deleteMethod     = "/etcdserverpb.KV/DeleteRange"
)

func services() []protoreflect.FullName {
	return []protoreflect.FullName{
		"etcdserverpb.KV", "etcdserverpb.Watch", "etcdserverpb.Lease", "etcdserverpb.Cluster",
		"etcdserverpb.Maintenance", "etcdserverpb.Auth", "v3electionpb.Election", "v3lockpb.Lock",
	}
}

// isRead names the methods that change nothing: they may be asked twice. Authenticate makes a token,
// and another one does no harm.
func isRead(full string) bool {
	switch full {
	case rangeMethod, rangeStream, "/etcdserverpb.Lease/LeaseTimeToLive", "/etcdserverpb.Lease/LeaseLeases",
		memberListMethod, "/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot",
		"/etcdserverpb.Maintenance/Hash", "/etcdserverpb.Maintenance/HashKV",
		"/etcdserverpb.Auth/Authenticate", "/etcdserverpb.Auth/AuthStatus", "/etcdserverpb.Auth/UserGet",
		"/etcdserverpb.Auth/UserList", "/etcdserverpb.Auth/RoleGet", "/etcdserverpb.Auth/RoleList",
		"/v3electionpb.Election/Leader", "/v3electionpb.Election/Observe":
		return true
	}
	return false
}

func allMethods() (map[string]*method, error) {
	all := make(map[string]*method)
	for _, service := range services() {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(service)
		if err != nil {
			return nil, fmt.Errorf("relay: %s: %w", service, err)
		}
		described, ok := found.(protoreflect.ServiceDescriptor)
		if !ok {
			return nil, fmt.Errorf("relay: %s is no service", service)
		}
		for i := range described.Methods().Len() {
			d := described.Methods().Get(i)
			full := fmt.Sprintf("/%s/%s", service, d.Name())
			m := &method{
				full: full, service: string(service), name: string(d.Name()), clientStreams: d.IsStreamingClient(), serverStreams: d.IsStreamingServer(),
				read: isRead(full),
			}
			if m.request, err = protoregistry.GlobalTypes.FindMessageByName(d.Input().FullName()); err != nil {
				return nil, fmt.Errorf("relay: request of %s: %w", full, err)
			}
			if m.answer, err = protoregistry.GlobalTypes.FindMessageByName(d.Output().FullName()); err != nil {
				return nil, fmt.Errorf("relay: answer of %s: %w", full, err)
			}
			all[full] = m
		}
	}
	return all, nil
}

func decode(kind protoreflect.MessageType, b []byte) (proto.Message, error) {
	m := kind.New().Interface()
	return m, proto.Unmarshal(b, m)
}
