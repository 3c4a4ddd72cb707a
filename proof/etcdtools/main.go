// Command etcdtools builds etcd's own programs into the user's cache, unless they are there, and
// prints their paths: for `make tools` and for trying things by hand. With -old it builds the older
// versions that pins has modules for, with -version one of them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/belaydb/belay/proof/cluster"
)

func main() {
	old := flag.Bool("old", false, "build the older versions")
	version := flag.String("version", cluster.EtcdVersion, "the version to build: "+strings.Join(append(cluster.OlderEtcd(), cluster.EtcdVersion), ", "))
	flag.Parse()
	if err := run(context.Background(), *old, *version); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, old bool, version string) error {
	if version == cluster.EtcdVersion && !old {
		tools, err := cluster.EtcdTools(ctx)
		if err == nil {
			fmt.Printf("BELAY_ETCD=%s\nBELAY_ETCDCTL=%s\nBELAY_ETCDUTL=%s\n", tools.Etcd, tools.Etcdctl, tools.Etcdutl)
		}
		return err
	}
	versions := []string{version}
	if old {
		versions = cluster.OlderEtcd()
	}
	for _, v := range versions {
		if !slices.Contains(cluster.OlderEtcd(), v) {
			return fmt.Errorf("no etcd %s is pinned; there are %s and %s", v, strings.Join(cluster.OlderEtcd(), ", "), cluster.EtcdVersion)
		}
		tools, _, err := cluster.OlderTools(ctx, v, true)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %s %s %s\n", v, tools.Etcd, tools.Etcdctl, tools.Etcdutl)
	}
	return nil
}
