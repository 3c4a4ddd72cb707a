package main

import (
	"os"
	"slices"
	"strings"
	"syscall"
)

// mallocSettings are read by glibc alone, before main; other C libraries pass them over.
var mallocSettings = []string{"MALLOC_ARENA_MAX=1", "MALLOC_MMAP_THRESHOLD_=524288", "MALLOC_TRIM_THRESHOLD_=1048576"}

// boundMalloc has the process begin anew, with the same id, with malloc bounded. If the kernel refuses,
// it goes on as it is.
//
// If this binary was built with cgo, the store's cache lies in memory of C's malloc (usesMalloc), else
// in Go's heap. glibc gives each thread that allocates an arena of its own, up to eight for each
// processor, and keeps in each what it once took. Blocks of the cache are 4 KiB to 1 MiB, and one
// thread frees what another one took: after half an hour of mixed values on two processors, 560 MB of
// free memory lay in fourteen arenas beside 110 MB in use. With one arena, and large blocks taken from
// the kernel and given back one by one, it stays within some megabytes of what is in use. Its lock
// costs nothing: blocks are taken on misses alone.
func boundMalloc() {
	if environ, needed := withMallocBounded(os.Environ()); usesMalloc && needed {
		if program, err := os.Executable(); err == nil {
			_ = syscall.Exec(program, os.Args, environ) // returns only if it failed
		}
	}
}

// withMallocBounded adds the settings to an environment, unless whoever made it has seen to malloc
// himself.
func withMallocBounded(environ []string) (bounded []string, needed bool) {
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "MALLOC_") || name == "LD_PRELOAD" && value != "" || name == "GLIBC_TUNABLES" && strings.Contains(value, "malloc") {
			return environ, false
		}
	}
	return slices.Concat(environ, mallocSettings), true
}
