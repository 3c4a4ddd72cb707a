package node

import (
	"context"
	"net/url"
	"path/filepath"
	"testing"
	"time"
)

// TestStartWithoutALogger: who starts a member from Go need not care for its log.
func TestStartWithoutALogger(t *testing.T) {
	any := []url.URL{{Scheme: "unix", Path: filepath.Join(t.TempDir(), "client")}}
	peer := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	n, err := Start(context.Background(), Config{
		Settings: Settings{
			Cluster: Cluster{
				Name: "default", DataDir: filepath.Join(t.TempDir(), "data"),
				InitialCluster: "default=http://127.0.0.1:0", InitialClusterToken: "start",
			},
			Ports: Ports{ListenClientURLs: any, AdvertiseClientURLs: any, ListenPeerURLs: peer, AdvertisePeerURLs: peer},
			Raft:  Raft{UnsafeNoFsync: true},
		},
		TickInterval: 10 * time.Millisecond, ElectionTicks: 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Stop()
	select {
	case <-n.Ready():
	case err := <-n.Failed():
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("the member did not become ready")
	}
}
