package proxy

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net/http"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// TestCallsOfOtherClients: a call of a client that is none of gRPC's own, with the length of its body
// among its headers, is answered; so is one that an HTTP proxy has passed on, with TLS, too.
func TestCallsOfOtherClients(t *testing.T) {
	t.Parallel()
	member := startMember(t)
	request, err := proto.Marshal(&pb.PutRequest{Key: []byte("k"), Value: bytes.Repeat([]byte("v"), 1000)})
	if err != nil {
		t.Fatal(err)
	}
	packed := &bytes.Buffer{}
	z := gzip.NewWriter(packed)
	if _, err := z.Write(request); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	body := func(flag byte, b []byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(b))), b...)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(client.CloseIdleConnections)
	for scheme, flags := range map[string][]string{"http": nil, "https": {"--auto-tls", "--data-dir=" + t.TempDir()}} {
		_, address := startProxy(t, append(flags, "--endpoints="+member, "--namespace=n/")...)
		for _, c := range []struct {
			name, header, value string
			body                []byte
		}{
			{"plain", "x-a", "b", body(0, request)},
			{"packed", "grpc-encoding", "gzip", body(1, packed.Bytes())},
			{"passed on", "x-forwarded-for", "10.0.0.1", body(0, request)},
		} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, scheme+"://"+address+"/etcdserverpb.KV/Put", bytes.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/grpc")
			r.Header.Set("Te", "trailers")
			r.Header.Set(c.header, c.value)
			resp, err := client.Do(r)
			if err != nil {
				t.Fatalf("%s, %s: %v", scheme, c.name, err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			status := resp.Trailer.Get("grpc-status")
			if status == "" {
				status = resp.Header.Get("grpc-status")
			}
			if err != nil || resp.StatusCode != http.StatusOK || status != "0" {
				t.Errorf("%s, %s: %s, status %q %q %q: %v", scheme, c.name, resp.Status, status, resp.Header.Get("grpc-message")+resp.Trailer.Get("grpc-message"), b, err)
			}
			client.CloseIdleConnections() // the first request of a connection says whose it is
		}
	}
}
