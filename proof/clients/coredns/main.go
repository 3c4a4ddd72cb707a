// Command coredns is CoreDNS with no more plugins than serving a zone from
// etcd takes: the whole program links clients of every cloud.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/etcd"
)

func main() {
	dnsserver.Directives = []string{"errors", "etcd"}
	coremain.Run()
}
