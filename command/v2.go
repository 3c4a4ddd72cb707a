package command

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/encoding/protowire"
)

// Until etcd 3.5 members publish themselves, and the leader sets the cluster's version, by requests
// of the API of version 2. Such an entry is
//
//	a Request, whose field 2 is the method      3.5, 3.4: no InternalRaftRequest can be read from it
//	an InternalRaftRequest with it as field 2   older
//
// Etcd 3.6 reads them as the requests of version 3 that took their place, and so do we; other
// requests of that API have no effect on what version 3 shows.

// FromV2 reads the payload of a normal entry as a request of the API of version 2 and returns what
// it means, nil if it has no effect. ok is false if it is no such request.
func FromV2(data []byte) (req *pb.InternalRaftRequest, ok bool, err error) {
	whole, ok := parseV2(data)
	if !ok || whole.method == "" {
		return nil, false, nil
	}
	if inner, ok := parseV2([]byte(whole.method)); ok && inner.method != "" {
		whole = inner
	}
	req, err = whole.request()
	return req, true, err
}

type requestV2 struct {
	id                  uint64
	method, path, value string
}

func parseV2(data []byte) (r requestV2, ok bool) {
	for len(data) > 0 {
		num, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return r, false
		}
		data = data[n:]
		var text []byte
		switch {
		case num == 1 && kind == protowire.VarintType:
			r.id, n = protowire.ConsumeVarint(data)
		case num >= 2 && num <= 4 && kind == protowire.BytesType:
			text, n = protowire.ConsumeBytes(data)
			*map[protowire.Number]*string{2: &r.method, 3: &r.path, 4: &r.value}[num] = string(text)
		default:
			n = protowire.ConsumeFieldValue(num, kind, data)
		}
		if n < 0 {
			return r, false
		}
		data = data[n:]
	}
	return r, true
}

// request is what etcd 3.6 would have written; nil: nothing.
func (r requestV2) request() (*pb.InternalRaftRequest, error) {
	header := &pb.RequestHeader{ID: r.id}
	parts := strings.Split(strings.TrimPrefix(r.path, "/"), "/")
	switch {
	case r.method != "PUT":
		return nil, nil
	case r.path == "/0/version":
		return &pb.InternalRaftRequest{Header: header, ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: r.value}}, nil
	case len(parts) == 4 && parts[0] == "0" && parts[1] == "members" && parts[3] == "attributes":
		id, err := strconv.ParseUint(parts[2], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("command: %w", err)
		}
		var a struct {
			Name       string   `json:"name"`
			ClientURLs []string `json:"clientURLs"`
		}
		if err := json.Unmarshal([]byte(r.value), &a); err != nil {
			return nil, fmt.Errorf("command: %w", err)
		}
		return &pb.InternalRaftRequest{Header: header, ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{
			Member_ID: id, MemberAttributes: &membershippb.Attributes{Name: a.Name, ClientUrls: a.ClientURLs},
		}}, nil
	}
	return nil, nil
}
