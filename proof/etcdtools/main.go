// Command etcdtools builds etcd's own programs into the user's cache, unless they are there, and
// prints their paths: for `make tools` and for trying things by hand.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/belaydb/belay/proof/cluster"
)

func main() {
	tools, err := cluster.EtcdTools(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("BELAY_ETCD=%s\nBELAY_ETCDCTL=%s\nBELAY_ETCDUTL=%s\n", tools.Etcd, tools.Etcdctl, tools.Etcdutl)
}
