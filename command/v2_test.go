package command

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// requestOfV2 is what etcd 3.5 writes for a request of the API of version 2.
func requestOfV2(method, path, value string) []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 77)
	for i, text := range []string{method, path, value} {
		b = protowire.AppendString(protowire.AppendTag(b, protowire.Number(i+2), protowire.BytesType), text)
	}
	return b
}

// TestDecodeV2: a member of etcd 3.5 publishes itself, and as the leader sets the cluster's version,
// by requests that are no InternalRaftRequest. A follower that refused them could never go on.
func TestDecodeV2(t *testing.T) {
	wrapped := func(b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), b)
	}
	published := requestOfV2("PUT", "/0/members/abc/attributes", `{"name":"m1","clientURLs":["http://c:1"]}`)
	for _, data := range [][]byte{published, wrapped(published)} {
		r, err := Decode(data)
		set := r.GetClusterMemberAttrSet()
		if err != nil || set.GetMember_ID() != 0xabc || set.GetMemberAttributes().GetName() != "m1" || set.GetMemberAttributes().GetClientUrls()[0] != "http://c:1" {
			t.Errorf("%x: %v, %v", data, r, err)
		}
		if err := Check(data); err != nil {
			t.Error(err)
		}
	}
	if r, err := Decode(requestOfV2("PUT", "/0/version", "3.5.0")); err != nil || r.GetClusterVersionSet().GetVer() != "3.5.0" {
		t.Error(r, err)
	}
	for _, data := range [][]byte{requestOfV2("SYNC", "", ""), wrapped(requestOfV2("PUT", "/1/key", "v")), requestOfV2("DELETE", "/1/key", "")} {
		if r, err := Decode(data); r != nil || err != nil {
			t.Errorf("%x: %v, %v", data, r, err)
		}
		if err := Check(data); err != nil {
			t.Error(err)
		}
	}
	for _, data := range [][]byte{requestOfV2("PUT", "/0/members/xyz/attributes", "{}"), wrapped(requestOfV2("PUT", "/0/members/abc/attributes", "{"))} {
		_, err := Decode(data)
		if checked := Check(data); err == nil || checked == nil {
			t.Errorf("%x is taken: %v, %v", data, err, checked)
		}
	}
}
