package discovery

import (
	"context"
	"net"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/net/dns/dnsmessage"
)

type service struct {
	target string
	port   uint16
}

// nameServer answers SRV and A questions of the given tables, over UDP, and returns a resolver that
// asks nobody else.
func nameServer(t *testing.T, services map[string][]service, hosts map[string][4]byte) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	answer := func(q dnsmessage.Question) (resources []dnsmessage.Resource, known bool) {
		name := strings.ToLower(q.Name.String())
		header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
		if found, ok := services[name]; ok {
			for _, s := range found {
				if q.Type == dnsmessage.TypeSRV {
					resources = append(resources, dnsmessage.Resource{Header: header, Body: &dnsmessage.SRVResource{Port: s.port, Target: dnsmessage.MustNewName(s.target)}})
				}
			}
			return resources, true
		}
		if ip, ok := hosts[name]; ok {
			if q.Type == dnsmessage.TypeA {
				resources = append(resources, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: ip}})
			}
			return resources, true
		}
		return nil, false
	}
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
			m.Response, m.Authoritative, m.RecursionAvailable, m.Additionals = true, true, true, nil
			var known bool
			if m.Answers, known = answer(m.Questions[0]); !known {
				m.RCode = dnsmessage.RCodeNameError
			}
			reply, err := m.Pack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = conn.WriteTo(reply, from) // who asked asks again
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func TestSRV(t *testing.T) {
	dns := nameServer(t, map[string][]service{
		"_etcd-server._tcp.plain.test.":         {{"a.plain.test.", 2380}, {"b.plain.test.", 2380}, {"c.plain.test.", 2380}},
		"_etcd-server-ssl._tcp.safe.test.":      {{"a.plain.test.", 2380}, {"b.plain.test.", 2380}},
		"_etcd-server-green._tcp.plain.test.":   {{"b.plain.test.", 1}},
		"_etcd-server-ssl._tcp.both.test.":      {{"a.plain.test.", 2380}},
		"_etcd-server._tcp.both.test.":          {{"b.plain.test.", 2380}},
		"_etcd-server._tcp.broken.test.":        {{"gone.plain.test.", 2380}},
		"_etcd-server._tcp.half-broken.test.":   {{"gone.plain.test.", 2380}, {"a.plain.test.", 2380}},
		"_etcd-server-ssl._tcp.mismatch.test.":  {{"a.plain.test.", 2380}},
		"_etcd-server-ssl._tcp.mismatch2.test.": {{"a.plain.test.", 2380}, {"b.plain.test.", 2380}},
	}, map[string][4]byte{"a.plain.test.": {10, 0, 0, 1}, "b.plain.test.": {10, 0, 0, 2}, "c.plain.test.": {10, 0, 0, 3}})
	for _, c := range []struct{ domain, suffix, advertise, want, err string }{
		{"plain.test", "", "http://a.plain.test:2380", "m=http://a.plain.test:2380,0=http://b.plain.test:2380,1=http://c.plain.test:2380", "_etcd-server-ssl"},
		{"plain.test", "", "http://10.0.0.2:2380", "0=http://a.plain.test:2380,m=http://b.plain.test:2380,1=http://c.plain.test:2380", "_etcd-server-ssl"},
		{"plain.test", "", "http://10.0.0.2:2381", "0=http://a.plain.test:2380,1=http://b.plain.test:2380,2=http://c.plain.test:2380", "_etcd-server-ssl"},
		{"plain.test", "green", "http://10.0.0.2:1", "m=http://b.plain.test:1", "_etcd-server-ssl-green"},
		{"safe.test", "", "https://10.0.0.1:2380", "m=https://a.plain.test:2380,0=https://b.plain.test:2380", "error querying DNS SRV records for _etcd-server "},
		// Both services count; each names its strangers from 0 on, as etcd does.
		{"both.test", "", "http://10.0.0.9:2380", "0=https://a.plain.test:2380,0=http://b.plain.test:2380", ""},
		{"none.test", "", "http://10.0.0.1:2380", "", "error querying DNS SRV records for _etcd-server-ssl lookup"},
		{"broken.test", "", "http://10.0.0.1:2380", "", "lookup gone.plain.test"},
		{"half-broken.test", "", "http://10.0.0.1:2380", "m=http://a.plain.test:2380", "_etcd-server-ssl"},
		{"mismatch.test", "", "http://10.0.0.1:2380", "", "bootstrap at https://a.plain.test:2380 from DNS for etcd-server-ssl has scheme mismatch with expected peer http://10.0.0.1:2380"},
		{"mismatch2.test", "", "http://10.0.0.1:2380", "0=https://b.plain.test:2380", "_etcd-server"},
		{"plain.test", "", "http://gone.plain.test:2380", "", "lookup gone.plain.test"},
	} {
		u, err := url.Parse(c.advertise)
		if err != nil {
			t.Fatal(err)
		}
		got, err := SRV(t.Context(), zap.NewNop(), dns, Records{Domain: c.domain, Suffix: c.suffix, Name: "m", Advertise: []url.URL{*u}})
		if got != c.want {
			t.Errorf("%s for %s: %q, want %q (%v)", c.domain, c.advertise, got, c.want, err)
		}
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s for %s: error %v, want %q", c.domain, c.advertise, err, c.err)
		}
	}
}

func TestSameURLs(t *testing.T) {
	parse := func(list ...string) (urls []url.URL) {
		for _, s := range list {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			urls = append(urls, *u)
		}
		return urls
	}
	for _, c := range []struct {
		a, b []string
		want string
	}{
		{[]string{"http://127.0.0.1:1"}, []string{"http://127.0.0.1:1"}, ""},
		{[]string{"http://127.0.0.1:1", "http://127.0.0.1:2"}, []string{"http://127.0.0.1:2", "http://127.0.0.1:1"}, ""},
		{[]string{"http://127.0.0.1:1"}, nil, `len(["http://127.0.0.1:1"]) != len([])`},
		{[]string{"http://127.0.0.1:1"}, []string{"http://127.0.0.1:2"}, `resolved urls: "http://127.0.0.1:1" != "http://127.0.0.1:2"`},
	} {
		got := ""
		if err := SameURLs(t.Context(), zap.NewNop(), parse(c.a...), parse(c.b...)); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v, %v: %q, want %q", c.a, c.b, got, c.want)
		}
	}
}
