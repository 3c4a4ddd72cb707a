//go:build etcd_integration && cluster_proxy

package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

// ThroughProxy has the tests expect what etcd's proxy makes of answers; `belay proxy` makes nothing
// of them.
const ThroughProxy = false

// ToGRPC is the API on a client's connection.
func ToGRPC(c *clientv3.Client) GRPCAPI {
	conn := c.ActiveConnection()
	return GRPCAPI{
		pb.NewClusterClient(conn), pb.NewKVClient(conn), pb.NewLeaseClient(conn), pb.NewWatchClient(conn),
		pb.NewMaintenanceClient(conn), pb.NewAuthClient(conn), v3lockpb.NewLockClient(conn), v3electionpb.NewElectionClient(conn),
	}
}

// newClientV3 makes a client with a proxy of its own before the endpoints; with TLS, where a proxy
// would need certificates that the tests do not have, without.
func newClientV3(cfg clientv3.Config) (*clientv3.Client, error) {
	if cfg.TLS != nil {
		return clientv3.New(cfg)
	}
	// At an address of this process's own, where nobody else takes the port before the proxy does.
	pid := os.Getpid()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+pid>>16&0x7f, pid>>8&0xff, pid&0xff))
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	l.Close()
	here, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	var members []string
	for _, e := range cfg.Endpoints {
		members = append(members, strings.Replace(e, "unix://", "unix://"+here+"/", 1)) // as a URL has it
	}
	cmd := exec.Command(os.Getenv("BELAY_CLIENTS_PROXY"), "proxy", "--listen-addr="+address, "--advertise-client-url=", "--endpoints="+strings.Join(members, ","),
		fmt.Sprintf("--max-send-bytes=%d", 100<<20)) // the members' bound is what tests set
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	end := func() {
		_ = cmd.Process.Kill() // it may be gone already
		_ = cmd.Wait()
	}
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		if time.Since(begun) > RequestTimeout {
			end()
			return nil, fmt.Errorf("the proxy of %v does not listen: %w", cfg.Endpoints, err)
		}
	}
	cfg.Endpoints = []string{address}
	c, err := clientv3.New(cfg)
	if err != nil {
		end()
		return nil, err
	}
	c.Watcher = &proxied{c.Watcher, end}
	return c, nil
}

// proxied is the part of a client that its Close closes first, with the end of its proxy.
type proxied struct {
	clientv3.Watcher
	end func()
}

func (p *proxied) Close() error {
	err := p.Watcher.Close()
	p.end()
	return err
}
