package main

import (
	"slices"
	"strings"
	"testing"
)

func TestWithMallocBounded(t *testing.T) {
	environ, needed := withMallocBounded([]string{"A=b", "LD_PRELOAD=", "GLIBC_TUNABLES=glibc.rtld.optional_static_tls=1024"})
	if !needed || !slices.Contains(environ, "A=b") || !slices.Contains(environ, "MALLOC_ARENA_MAX=1") {
		t.Errorf("%v, %v", environ, needed)
	}
	if _, again := withMallocBounded(environ); again {
		t.Error("it would begin anew for ever")
	}
	for _, theirs := range []string{"MALLOC_ARENA_MAX=4", "LD_PRELOAD=/usr/lib/libjemalloc.so.2", "GLIBC_TUNABLES=glibc.malloc.arena_max=2"} {
		if _, needed := withMallocBounded([]string{"A=b", theirs}); needed {
			t.Errorf("%s is overruled", theirs)
		}
	}
}

func TestServesMember(t *testing.T) {
	for args, want := range map[string]bool{
		"belay server --name x": true, "etcd": true, "/usr/bin/etcd --name x": true, "belay dev member --name x": true,
		"belay dev": false, "belay ctl get x": false, "etcd grpc-proxy start": false, "etcd gateway start": false, "etcdctl get x": false, "belay": false, "etcd __complete --": false,
	} {
		if got := servesMember(strings.Fields(args)); got != want {
			t.Errorf("%s: %v", args, got)
		}
	}
}
