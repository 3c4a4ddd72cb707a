package check

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/belaydb/belay/proof/cluster"
)

// nameServer answers questions for SRV records, by their whole name, and says of every host that it
// is at 127.0.0.1. It listens on port 53 of a loopback address that it returns.
func nameServer(t *testing.T, services func(name string) []string) string {
	t.Helper()
	var conn net.PacketConn
	var address string
	for i := range 50 {
		address = fmt.Sprintf("127.53.%d.%d", os.Getpid()%250, i+1)
		var err error
		if conn, err = net.ListenPacket("udp", address+":53"); err == nil {
			break
		} else if i == 49 {
			t.Skipf("a name server needs port 53: %v", err)
		}
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		packet := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(packet[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
			m.Response, m.Authoritative, m.RecursionAvailable, m.Additionals = true, true, true, nil
			name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
			switch {
			case strings.HasPrefix(name, "_"):
				for _, hostPort := range services(name) {
					host, port, _ := net.SplitHostPort(hostPort)
					number, _ := strconv.Atoi(port)
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: header,
						Body: &dnsmessage.SRVResource{Port: uint16(number), Target: dnsmessage.MustNewName(host + ".")}})
				}
				if len(m.Answers) == 0 {
					m.RCode = dnsmessage.RCodeNameError
				}
			case q.Type == dnsmessage.TypeA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
			}
			if reply, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(reply, from) // who asked asks again
			}
		}
	}()
	return address
}

// asking is a program that asks this name server, by a mount of its own over resolv.conf.
func asking(t *testing.T, server, program string) string {
	t.Helper()
	unshare, err := exec.LookPath("unshare")
	if err != nil || os.Getuid() != 0 {
		t.Skip("giving a process a name server of its own needs unshare and root")
	}
	dir := t.TempDir()
	resolv, script := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, filepath.Base(program))
	text := fmt.Sprintf("#!/bin/sh\nexec %s -m sh -c 'mount --bind %s /etc/resolv.conf && exec \"$@\"' sh %s \"$@\"\n", unshare, resolv, program)
	for name, text := range map[string]string{resolv: "nameserver " + server + "\n", script: text} {
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(unshare, "-m", "mount", "--bind", resolv, "/etc/resolv.conf").CombinedOutput(); err != nil {
		t.Skipf("mounts in a name space of its own do not work here: %v %s", err, out)
	}
	return script
}

// TestDiscoverySRV has members find each other, and clients find them, by DNS.
func TestDiscoverySRV(t *testing.T) {
	t.Parallel()
	records := map[string][]string{} // filled before anybody asks
	dns := nameServer(t, func(name string) []string { return records[name] })
	c := newCluster(t, cluster.Config{Kind: checkKind(t), Binary: asking(t, dns, binaryOf(t, checkKind(t))), Size: 3})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hostOf := func(m *cluster.Member, link string) string {
		u, err := url.Parse(link)
		if err != nil {
			t.Fatal(err)
		}
		return m.Name + ".cluster.test:" + u.Port()
	}
	for _, m := range c.Members {
		records["_etcd-server._tcp.cluster.test"] = append(records["_etcd-server._tcp.cluster.test"], hostOf(m, m.PeerURL))
		records["_etcd-client._tcp.cluster.test"] = append(records["_etcd-client._tcp.cluster.test"], hostOf(m, m.ClientURL))
		records["_etcd-client-green._tcp.cluster.test"] = append(records["_etcd-client-green._tcp.cluster.test"], hostOf(m, m.ClientURL))
		m.SetArgs(func(args []string) []string {
			i := slices.Index(args, "--initial-cluster")
			args = slices.Delete(args, i, i+2)
			args[slices.Index(args, "--initial-advertise-peer-urls")+1] = "http://" + hostOf(m, m.PeerURL)
			return append(args, "--discovery-srv=cluster.test")
		})
	}
	records["_etcd-server._tcp.others.test"] = []string{"x.others.test:1"}
	for _, m := range c.Members {
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	list, err := admin(t, c.Members...).MemberList(ctx)
	if err != nil || len(list.Members) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, e := range list.Members {
		i := slices.IndexFunc(c.Members, func(m *cluster.Member) bool { return m.Name == e.Name })
		if i < 0 || e.PeerURLs[0] != "http://"+hostOf(c.Members[i], c.Members[i].PeerURL) {
			t.Errorf("member %v", e)
		}
	}

	etcdctl := asking(t, dns, EtcdTools(t).Etcdctl)
	for _, command := range [][]string{{etcdctl}, {asking(t, dns, Belay(t)), "ctl"}} {
		for _, more := range [][]string{{}, {"--discovery-srv-name=green"}} {
			args := slices.Concat(command[1:], []string{"--discovery-srv=cluster.test", "--insecure-discovery", "put", "a", "b"}, more)
			if out, err := exec.CommandContext(ctx, command[0], args...).CombinedOutput(); err != nil || string(out) != "OK\n" {
				t.Errorf("%s: %s %v", strings.Join(args, " "), out, err)
			}
		}
	}

	// A member that is not in the records, or finds none, does not start.
	for _, domain := range []string{"others.test", "none.test"} {
		var said []string
		for _, program := range []string{byTheNameOfEtcd(t), binaryOf(t, cluster.Etcd)} {
			var ports [2]string
			for i := range ports {
				port, err := cluster.FreePort()
				if err != nil {
					t.Fatal(err)
				}
				ports[i] = fmt.Sprint("http://127.0.0.1:", port)
			}
			dir := t.TempDir()
			said = append(said, ending(ctx, asking(t, dns, program), dir, strings.NewReplacer(dns, "DNS"), "--name=x", "--data-dir="+dir+"/data", "--discovery-srv="+domain,
				"--listen-client-urls="+ports[0], "--advertise-client-urls="+ports[0], "--listen-peer-urls="+ports[1], "--initial-advertise-peer-urls="+ports[1]))
		}
		if said[0] != said[1] || !strings.HasPrefix(said[0], "1 ") {
			t.Errorf("%s:\nbelay %s\netcd  %s", domain, said[0], said[1])
		}
	}
}

// TestDiscoverySRVSecure has members and clients find each other by the records for TLS: members
// ask each other for certificates of their hosts, clients for one of the domain.
func TestDiscoverySRVSecure(t *testing.T) {
	t.Parallel()
	a := newIssuer(t, "check")
	domain := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = names, nil }
	}
	a.issue("member", domain("cluster.test", "*.cluster.test"))
	a.issue("elsewhere", domain("m1.elsewhere.test", "m2.elsewhere.test", "m3.elsewhere.test"))
	a.issue("good", nil)
	for _, kind := range []cluster.Kind{checkKind(t), cluster.Etcd} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			t.Parallel()
			records := map[string][]string{} // filled before anybody asks
			dns := nameServer(t, func(name string) []string { return records[name] })
			files := func(prefix, cert string) []string {
				return []string{"--" + prefix + "cert-file=" + a.Cert(cert), "--" + prefix + "key-file=" + a.Key(cert), "--" + prefix + "trusted-ca-file=" + a.CA(), "--" + prefix + "client-cert-auth"}
			}
			secure := a.client("good")
			secure.ServerName = "cluster.test"
			c := newCluster(t, cluster.Config{Kind: kind, Binary: asking(t, dns, binaryOf(t, kind)), Size: 3, TLS: secure, PeerTLS: true,
				Args: slices.Concat(files("", "member"), files("peer-", "member"))})
			for _, m := range c.Members {
				peer, client := strings.TrimPrefix(m.PeerURL, "https://127.0.0.1"), strings.TrimPrefix(m.ClientURL, "https://127.0.0.1")
				records["_etcd-server-ssl._tcp.cluster.test"] = append(records["_etcd-server-ssl._tcp.cluster.test"], m.Name+".cluster.test"+peer)
				records["_etcd-client-ssl._tcp.cluster.test"] = append(records["_etcd-client-ssl._tcp.cluster.test"], m.Name+".cluster.test"+client)
				m.SetArgs(func(args []string) []string {
					i := slices.Index(args, "--initial-cluster")
					args = slices.Delete(args, i, i+2)
					args[slices.Index(args, "--initial-advertise-peer-urls")+1] = "https://" + m.Name + ".cluster.test" + peer
					return append(args, "--discovery-srv=cluster.test")
				})
			}
			// A record without TLS is no endpoint for a client that does not ask for it.
			records["_etcd-client._tcp.cluster.test"] = []string{"plain.cluster.test:1"}
			for _, m := range c.Members {
				if err := m.Start(); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := c.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			for _, command := range [][]string{{asking(t, dns, EtcdTools(t).Etcdctl)}, {asking(t, dns, Belay(t)), "ctl"}} {
				flags := []string{"--discovery-srv=cluster.test", "--cacert=" + a.CA(), "--cert=" + a.Cert("good"), "--key=" + a.Key("good")}
				for _, do := range [][]string{{"put", "a", "b"}, {"member", "list"}} {
					args := slices.Concat(command[1:], flags, do)
					out, err := exec.CommandContext(ctx, command[0], args...).CombinedOutput()
					if err != nil || string(out) != "OK\n" && strings.Count(string(out), ".cluster.test:") != 3 {
						t.Errorf("%s: %s %v", strings.Join(args, " "), out, err)
					}
				}
			}

			// A member with a certificate of other hosts is not believed.
			m := c.Members[0]
			if err := m.Kill(); err != nil {
				t.Fatal(err)
			}
			m.SetArgs(func(args []string) []string {
				for i := range args {
					args[i] = strings.ReplaceAll(strings.ReplaceAll(args[i], a.Cert("member"), a.Cert("elsewhere")), a.Key("member"), a.Key("elsewhere"))
				}
				return args
			})
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
			if err := eventually(ctx, func() error {
				log, err := os.ReadFile(c.Members[1].LogPath)
				if err == nil && !strings.Contains(string(log), "certificate is valid for m1.elsewhere.test") {
					err = errors.New("member 2 does not say that the certificate of member 1 is not for its host")
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
}
