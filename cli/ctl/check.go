package ctl

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// workload is one of the sizes s, m, l and xl of a check.
type workload struct {
	clients  int
	rate     int           // perf: writes per second
	duration time.Duration // perf
	keys     int           // datascale
	patience time.Duration // with a write; 0: perfGone
}

func (w workload) gone() time.Duration { return cmp.Or(w.patience, perfGone) }

// The bounds of `check perf`.
const (
	perfShare       = 0.9              // of the wanted rate
	perfSlowest     = 0.5              // seconds, of any write
	perfDeviation   = 0.1              // seconds, standard deviation of all writes
	checkAfterwards = 30 * time.Second // for each of deleting, compacting, defragmenting
	perfGone        = 30 * time.Second // a write that takes this long means that the server is gone
)

func perfLoads() map[string]workload {
	const d = 60 * time.Second
	return map[string]workload{
		"s":  {clients: 50, rate: 150, duration: d},
		"m":  {clients: 200, rate: 1000, duration: d},
		"l":  {clients: 500, rate: 8000, duration: d},
		"xl": {clients: 1000, rate: 15000, duration: d},
	}
}

func scaleLoads() map[string]workload {
	return map[string]workload{
		"s":  {clients: 50, keys: 10_000},
		"m":  {clients: 200, keys: 100_000},
		"l":  {clients: 500, keys: 1_000_000},
		"xl": {clients: 1000, keys: 3_000_000},
	}
}

// loadOf returns the workload with a name, short or long.
func loadOf(loads map[string]workload, name string) (workload, error) {
	if short, ok := map[string]string{"small": "s", "medium": "m", "large": "l", "xLarge": "xl"}[name]; ok {
		name = short
	}
	w, ok := loads[name]
	if !ok {
		return workload{}, failf(codeBadFeature, "unknown load option %v", name)
	}
	return w, nil
}

// checkFlags are the flags of both checks.
type checkFlags struct {
	load, prefix            string
	autoCompact, autoDefrag bool
}

func (f *checkFlags) register(cmd *cobra.Command, prefix string) {
	fs := cmd.Flags()
	fs.StringVar(&f.load, "load", "s", "how much: s(small), m(medium), l(large), xl(xLarge)")
	fs.StringVar(&f.prefix, "prefix", prefix, "what the keys that are written begin with")
	fs.BoolVar(&f.autoCompact, "auto-compact", false, "compact the history when done")
	fs.BoolVar(&f.autoDefrag, "auto-defrag", false, "defragment the store when done")
	// The name is registered a few lines above, so this cannot fail.
	_ = cmd.RegisterFlagCompletionFunc("load", choices("small", "medium", "large", "xLarge"))
}

func (c *ctl) checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check <subcommand>",
		Short:   "How fast the cluster is, and what data costs. See `" + c.name + " check --help`",
		Long:    "How fast the cluster is, and what data costs",
		GroupID: groupUtility,
	}
	cmd.AddCommand(c.checkPerfCommand(perfLoads()), c.checkDatascaleCommand(scaleLoads()))
	return cmd
}

func (c *ctl) checkPerfCommand(loads map[string]workload) *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "perf [options]",
		Short: "Writes at a steady rate for a minute and says how that went",
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		w, err := loadOf(loads, f.load)
		if err != nil {
			return err
		}
		_, clients, err := c.checkClients(cmd, w.clients, f.prefix, "'etcdctl del --prefix %s'")
		if err != nil {
			return err
		}
		whole, stop := untilSignal(cmd.Context())
		defer stop()
		ctx, cancel := context.WithTimeout(whole, w.duration)
		defer cancel()
		progress := c.progress(int(w.duration/time.Second), "s")
		begin := time.Now()
		s := write(whole, w.gone(), clients, f.prefix, 256, 1024, func(n int) bool {
			// Write number n is due n/rate after the start.
			due := time.NewTimer(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(w.rate))))
			defer due.Stop()
			select {
			case <-ctx.Done():
				return false
			case <-due.C:
				progress(int(time.Since(begin) / time.Second))
				return true
			}
		})
		progress(-1)
		if err := c.cleanUp(clients[0], &f, true); err != nil {
			return err
		}
		if !c.judge(s, w) {
			fmt.Fprintln(c.out, "FAIL")
			return &exitError{code: codeError}
		}
		fmt.Fprintln(c.out, "PASS")
		return nil
	})
	f.register(cmd, "/etcdctl-check-perf/")
	return cmd
}

// judge prints the verdict of a perf check line by line.
func (c *ctl) judge(s *tally, w workload) bool {
	good := c.errorsOf(s)
	verdict := func(ok bool, pass, fail string, value any) {
		if !ok {
			good, pass = false, fail
		}
		fmt.Fprintf(c.out, pass+"\n", value)
	}
	rate, slowest, deviation := s.summary()
	verdict(rate/float64(w.rate) > perfShare, "PASS: Throughput is %d writes/s", "FAIL: Throughput too low: %d writes/s", int(rate)+1)
	verdict(slowest <= perfSlowest, "PASS: Slowest request took %fs", "Slowest request took too long: %fs", slowest)
	verdict(!(deviation > perfDeviation), "PASS: Stddev is %fs", "Stddev too high: %fs", deviation)
	return good
}

func (c *ctl) checkDatascaleCommand(loads map[string]workload) *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "datascale [options]",
		Short: "Writes many keys and says how much memory the server took for them",
		Long:  "Writes many keys and says how much memory the server took for them. Of several endpoints the first is looked at.",
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		w, err := loadOf(loads, f.load)
		if err != nil {
			return err
		}
		spec, clients, err := c.checkClients(cmd, w.clients, f.prefix, "etcdctl del --prefix %s")
		if err != nil {
			return err
		}
		resident := func(when string) (float64, error) {
			bytes, err := residentBytes(cmd.Context(), spec)
			if err != nil {
				fmt.Fprintln(c.out, err)
				fmt.Fprintf(c.out, "FAIL: Could not read process_resident_memory_bytes %s the put operations.\n", when)
				return 0, &exitError{code: codeError}
			}
			return bytes, nil
		}
		before, err := resident("before")
		if err != nil {
			return err
		}
		const keyBytes, valueBytes = 512, 512
		fmt.Fprintf(c.out, "Start data scale check for work load [%v key-value pairs, %v bytes per key-value, %v concurrent clients].\n",
			w.keys, keyBytes+valueBytes, w.clients)
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		progress := c.progress(w.keys, " keys")
		s := write(ctx, w.gone(), clients, f.prefix, keyBytes, valueBytes, func(n int) bool {
			progress(n)
			return n < w.keys
		})
		progress(-1)
		if ctx.Err() != nil { // what was written is deleted; there is no verdict on it
			err := c.cleanUp(clients[0], &f, false)
			return errors.Join(context.Cause(ctx), err)
		}
		after, err := resident("after")
		if err != nil {
			return err
		}
		if err := c.cleanUp(clients[0], &f, false); err != nil {
			return err
		}
		if !c.errorsOf(s) {
			return &exitError{code: codeError}
		}
		fmt.Fprintf(c.out, "PASS: Approximate system memory used : %v MB.\n", strconv.FormatFloat((after-before)/(1<<20), 'f', 2, 64))
		return nil
	})
	f.register(cmd, "/etcdctl-check-datascale/")
	return cmd
}

// checkClients makes the clients of a check and checks that its prefix is unused.
func (c *ctl) checkClients(cmd *cobra.Command, count int, prefix, remedy string) (*clientv3.ConfigSpec, []*clientv3.Client, error) {
	spec, _, err := c.configure(cmd)
	if err != nil {
		return nil, nil, err
	}
	clients := make([]*clientv3.Client, count)
	for i := range clients {
		if clients[i], err = c.dial(cmd.Context(), spec); err != nil {
			return nil, nil, err
		}
	}
	ctx, cancel := c.timeout(cmd)
	defer cancel()
	resp, err := clients[0].Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1))
	if err != nil {
		return nil, nil, err
	}
	if len(resp.Kvs) > 0 {
		return nil, nil, failf(codeInvalidInput, "prefix %q has keys. Delete with "+remedy+" first", prefix, prefix)
	}
	return spec, clients, nil
}

// progress returns a function that shows on standard error how much of total
// is done; a negative number ends the line.
func (c *ctl) progress(total int, unit string) func(done int) {
	shown := -1
	return func(done int) {
		percent := 100 * done / max(total, 1)
		switch {
		case done < 0:
			fmt.Fprintf(c.err, "\r%d%s / %d%s 100%%\n", total, unit, total, unit)
		case percent > shown:
			shown = percent
			fmt.Fprintf(c.err, "\r%d%s / %d%s %d%%", done, unit, total, unit, percent)
		}
	}
}

// cleanUp deletes what a check wrote. If that fails, perf continues to its verdict, datascale does
// not.
func (c *ctl) cleanUp(cli *clientv3.Client, f *checkFlags, goOn bool) error {
	// Not the command's context: the check may have been interrupted.
	bounded := func(fn func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(context.Background(), checkAfterwards)
		defer cancel()
		return fn(ctx)
	}
	var rev int64
	err := bounded(func(ctx context.Context) error {
		resp, err := cli.Delete(ctx, f.prefix, clientv3.WithPrefix())
		if err == nil {
			rev = resp.Header.Revision
		}
		return err
	})
	switch {
	case err != nil && goOn:
		fmt.Fprintf(c.out, "FAIL: Cleanup failed during key deletion: ERROR(%v)\n", err)
	case err != nil:
		return err
	case f.autoCompact:
		fmt.Fprintf(c.out, "Compacting with revision %d\n", rev)
		if err := bounded(func(ctx context.Context) error {
			_, err := cli.Compact(ctx, rev, clientv3.WithCompactPhysical())
			return err
		}); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "Compacted with revision %d\n", rev)
	}
	if !f.autoDefrag {
		return nil
	}
	for _, ep := range cli.Endpoints() {
		fmt.Fprintf(c.out, "Defragmenting %q\n", ep)
		if err := bounded(func(ctx context.Context) error {
			_, err := cli.Defragment(ctx, ep)
			return err
		}); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "Defragmented %q\n", ep)
	}
	return nil
}

// errorsOf prints the errors and reports whether there were none.
func (c *ctl) errorsOf(s *tally) bool {
	if len(s.errors) == 0 {
		return true
	}
	fmt.Fprintln(c.out, "FAIL: too many errors")
	for text, count := range s.errors {
		fmt.Fprintf(c.out, "FAIL: ERROR(%v) -> %d\n", text, count)
	}
	return false
}

// tally is the result of the writes of a check.
type tally struct {
	mu      sync.Mutex
	seconds []float64 // of each write that succeeded
	errors  map[string]int
	total   time.Duration
}

func (s *tally) add(took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.errors[err.Error()]++
		return
	}
	s.seconds = append(s.seconds, took.Seconds())
}

// summary returns writes per second, and the slowest write and the standard deviation in seconds.
func (s *tally) summary() (rate, slowest, deviation float64) {
	count := float64(len(s.seconds))
	if count == 0 {
		return 0, 0, math.NaN()
	}
	sum := 0.0
	for _, v := range s.seconds {
		sum += v
	}
	for _, v := range s.seconds {
		deviation += (v - sum/count) * (v - sum/count)
	}
	return count / s.total.Seconds(), slices.Max(s.seconds), math.Sqrt(deviation / count)
}

// write puts random keys from all clients at once until next(number of the write, from 0) returns
// false, ctx ends or a server is gone. next is called by one goroutine.
func write(ctx context.Context, gone time.Duration, clients []*clientv3.Client, prefix string, keyBytes, valueBytes int, next func(n int) bool) *tally {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &tally{errors: make(map[string]int)}
	begin := time.Now()
	value := string(make([]byte, valueBytes))
	keys := make(chan string, len(clients))
	var wg sync.WaitGroup
	for _, cli := range clients {
		wg.Go(func() {
			for key := range keys {
				start := time.Now()
				// Slow writes are to be measured, not ended; but a server that is gone answers
				// none, and the client would wait for it.
				within, done := context.WithTimeout(ctx, gone)
				_, err := cli.Put(within, key, value)
				if within.Err() != nil {
					cancel()
				}
				done()
				s.add(time.Since(start), err)
			}
		})
	}
	key := make([]byte, keyBytes)
	for n := 0; next(n); n++ {
		binary.PutVarint(key, rand.Int64())
		select {
		case keys <- prefix + string(key):
			continue
		case <-ctx.Done():
		}
		break
	}
	close(keys)
	wg.Wait()
	s.total = time.Since(begin)
	return s
}

// rootsFrom reads CA certificates; nil, meaning the system's, without a file.
func rootsFrom(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", file)
	}
	return pool, nil
}

// residentBytes asks the first endpoint's /metrics for the memory it uses.
func residentBytes(ctx context.Context, spec *clientv3.ConfigSpec) (float64, error) {
	const family = "process_resident_memory_bytes"
	endpoint := spec.Endpoints[0]
	if !strings.HasPrefix(endpoint, "http://") && !strings.HasPrefix(endpoint, "https://") {
		endpoint = "http://" + endpoint
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	if strings.HasPrefix(endpoint, "https://") {
		cert, err := tls.LoadX509KeyPair(spec.Secure.Cert, spec.Secure.Key)
		if err != nil {
			return 0, fmt.Errorf("client certificate error: %w", err)
		}
		roots, err := rootsFrom(spec.Secure.Cacert)
		if err != nil {
			return 0, err
		}
		transport.TLSClientConfig = &tls.Config{
			Certificates: []tls.Certificate{cert}, RootCAs: roots, InsecureSkipVerify: spec.Secure.InsecureSkipVerify,
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/metrics", nil)
	if err != nil {
		return 0, fmt.Errorf("fetch error: %w", err)
	}
	resp, err := (&http.Client{Transport: transport, Timeout: checkAfterwards}).Do(req)
	if err != nil {
		return 0, fmt.Errorf("fetch error: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("fetch error: reading %s: %w", req.URL, err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, family+" "); ok {
			bytes, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				return 0, fmt.Errorf("parse error: %w", err)
			}
			if bytes == 0 {
				return 0, errors.New(family + " is 0")
			}
			return bytes, nil
		}
	}
	return 0, fmt.Errorf("could not find: %s", family)
}
