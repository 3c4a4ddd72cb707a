// Command bench measures Belay beside etcd, in one run and on one machine.
//
// For each case, number of nodes and kind of server it starts fresh members on loopback, loads what
// the case needs, runs clients for a while and prints throughput, latency, and what the servers
// cost: CPU seconds for each 1,000 operations, peak resident memory, bytes sent to the disk. Kinds
// alternate within a case, so that a slow minute of the machine hits both.
//
//	go run ./proof/bench                          everything: about a quarter of an hour
//	go run ./proof/bench -cases put-1000 -nodes 1 -repeat 5
//	go run ./proof/bench -cases restart -keys 1000000
//	go run ./proof/bench -growth all              curves by keys, connections, leases (make growth)
//
// Clients and servers share the machine, so the client is lean, as cli/bench/load makes it: requests
// are encoded once and patched, answers are not decoded, connections are few. Its own cost is
// therefore small but not zero, and the throughput on two cores is not that of a server that has
// them to itself; the CPU column is.
//
// The kinds empty and empty-own are gRPC servers that answer every call with nothing: the lower
// bounds for any server built on grpc-go, and on package rpc.
//
// Files: main.go (flags, order), cases.go (what is run), client.go (connections, clients), measure.go
// (costs), report.go (table, JSON), restart.go, readers.go, growth.go (what
// grows), curves.go (its tables and pictures), empty.go, own.go (this
// process's CPU time).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// Servers that answer every call with nothing: on grpc-go, and on Belay's own server.
const (
	empty    cluster.Kind = "empty"
	emptyOwn cluster.Kind = "empty-own"
)

// quota is the members' --quota-backend-bytes.
const quota = 64 << 30

type options struct {
	duration time.Duration
	warmup   time.Duration
	conns    int
	repeat   int
	keys     int
	dir      string
	args     string
	binaries map[cluster.Kind]string
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "serve-empty" {
		if err := serveEmpty(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "light-client" {
		if err := lightClient(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	caseList := flag.String("cases", "all", "comma-separated cases, or a prefix of their names ending in *; all = "+strings.Join(caseNames(), ","))
	nodeList := flag.String("nodes", "1,3", "comma-separated sizes of the cluster")
	kindList := flag.String("kinds", "etcd,belay", "comma-separated kinds: etcd, belay, empty, empty-own (servers that do nothing: one node, calls without a stream)")
	jsonPath := flag.String("json", "", "also write the results to this file as JSON")
	flag.DurationVar(&o.duration, "d", 5*time.Second, "how long each case is measured")
	flag.DurationVar(&o.warmup, "warmup", time.Second, "how long each case runs before it is measured")
	flag.IntVar(&o.conns, "conns", 8, "connections, spread over the members")
	flag.IntVar(&o.repeat, "repeat", 1, "runs of each case; the median of each column is printed")
	flag.IntVar(&o.keys, "keys", 1_000_000, "keys of the restart case")
	flag.StringVar(&o.dir, "dir", "", "where members keep their data (default: a temporary folder); name a folder on the disk that matters")
	flag.StringVar(&o.args, "args", "", "more flags for every member, separated by spaces")
	var g growing
	flag.StringVar(&g.curves, "growth", "", "instead of the cases: curves of what grows, comma-separated, of keys, connections, leases, catch-up, article; or all")
	flag.StringVar(&g.pictures, "pictures", "docs/growth", "folder for the pictures of -growth")
	flag.IntVar(&g.most, "most", 1_000_000, "the largest size of -growth: 50000000 keys take some 20 GB of disk and hours")
	belay := flag.String("belay", "", "belay binary (default: built from this source)")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	cases, err := chooseCases(*caseList)
	if err != nil {
		return err
	}
	var sizes []int
	for _, s := range strings.Split(*nodeList, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("-nodes: %q is not a size of a cluster", s)
		}
		sizes = append(sizes, n)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	temp, err := os.MkdirTemp(o.dir, "belay-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	o.dir = temp
	o.binaries = make(map[cluster.Kind]string)
	var kinds []cluster.Kind
	for _, k := range strings.Split(*kindList, ",") {
		kind := cluster.Kind(k)
		kinds = append(kinds, kind)
		switch kind {
		case cluster.Etcd:
			tools, err := cluster.EtcdTools(ctx)
			if err != nil {
				return err
			}
			o.binaries[kind] = tools.Etcd
		case cluster.Belay:
			if o.binaries[kind] = *belay; *belay == "" {
				if o.binaries[kind], err = cluster.BuildBelay(ctx, filepath.Join(temp, "belay")); err != nil {
					return err
				}
			}
		case empty, emptyOwn:
			if o.binaries[kind], err = os.Executable(); err != nil {
				return err
			}
		default:
			return fmt.Errorf("-kinds: unknown kind %q", k)
		}
		if o.binaries[kind], err = copied(o.binaries[kind], filepath.Join(temp, k+".bin")); err != nil {
			return err
		}
	}

	rep := newReport(o, kinds)
	rep.header(os.Stdout)
	if g.curves != "" {
		return grow(ctx, o, g, kinds)
	}
	for _, size := range sizes {
		rep.section(os.Stdout, size)
		for _, c := range cases {
			if c.oneNode && size != 1 {
				continue
			}
			for n := range o.repeat {
				order := slices.Clone(kinds)
				if n%2 == 1 {
					slices.Reverse(order)
				}
				for _, kind := range order {
					if isEmpty(kind) && (!c.empty || size != 1) {
						continue
					}
					res, err := runCase(ctx, o, c, kind, size)
					if ctx.Err() != nil {
						return errors.New("interrupted")
					}
					if err != nil {
						// One server that fails a case is a result too.
						res = result{Failure: firstLine(err)}
						fmt.Fprintf(os.Stderr, "bench: %s, %d nodes, %s: %v\n", c.name, size, kind, err)
					}
					rep.add(c.name, size, kind, res)
				}
			}
			rep.row(os.Stdout, c, size)
		}
	}
	rep.notes(os.Stdout)
	if *jsonPath != "" {
		return rep.writeJSON(*jsonPath)
	}
	return nil
}

// copied copies a program, so that all of them lie alike in the page cache. Of one that the linker has
// just written the kernel has pieces of 2 MiB there, and maps them whole: its resident set is some
// 10 MB larger than that of the same file copied.
func copied(from, to string) (string, error) {
	in, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, in)
	return to, errors.Join(err, out.Close())
}

func isEmpty(kind cluster.Kind) bool { return kind == empty || kind == emptyOwn }

func firstLine(err error) string { return strings.SplitN(err.Error(), "\n", 2)[0] }

// runCase runs one case once, on fresh members.
func runCase(ctx context.Context, o options, c benchCase, kind cluster.Kind, size int) (res result, err error) {
	err = onCluster(ctx, o, kind, size, 10*time.Minute, func(ctx context.Context, cl *cluster.Cluster) error {
		res, err = c.run(ctx, o, cl)
		return err
	})
	return res, err
}

// onCluster does something with fresh members, for at most so long.
func onCluster(ctx context.Context, o options, kind cluster.Kind, size int, limit time.Duration, do func(context.Context, *cluster.Cluster) error) error {
	dir, err := os.MkdirTemp(o.dir, string(kind)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	args := []string{"--quota-backend-bytes", strconv.Itoa(quota), "--log-level", "error"}
	clusterKind := kind
	if isEmpty(kind) {
		clusterKind = cluster.Etcd // its flags are ignored
	}
	cl, err := cluster.New(cluster.Config{
		Kind: clusterKind, Binary: o.binaries[kind], Size: size, Dir: dir, Args: append(args, strings.Fields(o.args)...),
	})
	if err != nil {
		return err
	}
	defer cl.Close()
	if isEmpty(kind) {
		cl.Members[0].SetArgs(func([]string) []string { return []string{"serve-empty", string(kind), cl.Members[0].Endpoint()} })
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := cl.Start(ctx); err != nil {
		return err
	}
	return do(ctx, cl)
}
