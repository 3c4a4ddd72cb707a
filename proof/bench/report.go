package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// report collects results and prints them as a markdown table, a row as soon as its case is done.
type report struct {
	opts  options
	kinds []cluster.Kind
	runs  map[rowKey][]result
	order []rowKey
}

type rowKey struct {
	Case  string
	Nodes int
	Kind  cluster.Kind
}

func newReport(o options, kinds []cluster.Kind) *report {
	return &report{opts: o, kinds: kinds, runs: make(map[rowKey][]result)}
}

func (r *report) add(name string, nodes int, kind cluster.Kind, res result) {
	k := rowKey{name, nodes, kind}
	if len(r.runs[k]) == 0 {
		r.order = append(r.order, k)
	}
	r.runs[k] = append(r.runs[k], res)
}

// median takes the median of each column; a failure in any run is kept.
func median(runs []result) result {
	of := func(get func(result) float64) float64 {
		var v []float64
		for _, r := range runs {
			if r.Failure == "" {
				v = append(v, get(r))
			}
		}
		if len(v) == 0 {
			return 0
		}
		slices.SortFunc(v, cmp.Compare)
		return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
	}
	m := result{
		OpsPerSecond:    of(func(r result) float64 { return r.OpsPerSecond }),
		P50:             of(func(r result) float64 { return r.P50 }),
		P99:             of(func(r result) float64 { return r.P99 }),
		CPUPerThousand:  of(func(r result) float64 { return r.CPUPerThousand }),
		ClientCPU:       of(func(r result) float64 { return r.ClientCPU }),
		PeakRSSBytes:    of(func(r result) float64 { return r.PeakRSSBytes }),
		WrittenPerOp:    of(func(r result) float64 { return r.WrittenPerOp }),
		DevicePerOp:     of(func(r result) float64 { return r.DevicePerOp }),
		RestartGraceful: of(func(r result) float64 { return r.RestartGraceful }),
		RestartKilled:   of(func(r result) float64 { return r.RestartKilled }),
	}
	for _, r := range runs {
		m.Operations += r.Operations
		m.Errors += r.Errors
		if r.Failure != "" {
			m.Failure = r.Failure
		}
	}
	return m
}

func (r *report) header(w io.Writer) {
	fmt.Fprintf(w, "# Benchmark of %s\n\n", time.Now().UTC().Format("2006-01-02 15:04 MST"))
	fmt.Fprintf(w, "%s, %d cores, %s, %s; commit %s; etcd %s.\n", cpuModel(), runtime.NumCPU(), kernel(), runtime.Version(), commit(), cluster.EtcdVersion)
	fmt.Fprintf(w, "Client and servers share this machine. %v a case after %v of warming up, %d connections, median of %d. `%s`\n",
		r.opts.duration, r.opts.warmup, r.opts.conns, r.opts.repeat, strings.Join(append([]string{"go run ./proof/bench"}, os.Args[1:]...), " "))
}

func (r *report) section(w io.Writer, nodes int) {
	fmt.Fprintf(w, "\n## %s\n\n", plural(nodes, "node"))
	fmt.Fprintln(w, "| case | server | ops/s | p50 | p99 | server CPU s per 1,000 | client CPU s per 1,000 | peak RSS | charged per op | disk per op | errors |")
	fmt.Fprintln(w, "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
}

func (r *report) row(w io.Writer, c benchCase, nodes int) {
	all := make(map[cluster.Kind]result)
	for _, kind := range r.kinds {
		runs := r.runs[rowKey{c.name, nodes, kind}]
		if len(runs) == 0 {
			continue
		}
		m := median(runs)
		if m.Failure != "" {
			fmt.Fprintf(w, "| %s | %s | failed: %s | | | | | | | | |\n", c.name, kind, strings.ReplaceAll(m.Failure, "|", "/"))
			continue
		}
		all[kind] = m
		if c.name == "restart" {
			fmt.Fprintf(w, "| restart, %d keys | %s | %.0f (load) | %s after SIGTERM | %s after kill -9 | %.4f | | %s | %s | %s | %d |\n",
				r.opts.keys, kind, m.OpsPerSecond, seconds(m.RestartGraceful), seconds(m.RestartKilled), m.CPUPerThousand, size(m.PeakRSSBytes), size(m.WrittenPerOp), size(m.DevicePerOp), m.Errors)
			continue
		}
		fmt.Fprintf(w, "| %s | %s | %.0f | %s | %s | %.4f | %.4f | %s | %s | %s | %d |\n",
			c.name, kind, m.OpsPerSecond, seconds(m.P50), seconds(m.P99), m.CPUPerThousand, m.ClientCPU, size(m.PeakRSSBytes), size(m.WrittenPerOp), size(m.DevicePerOp), m.Errors)
	}
	etcd, ok := all[cluster.Etcd]
	if !ok {
		return
	}
	for _, kind := range r.kinds {
		m, ok := all[kind]
		if !ok || kind == cluster.Etcd {
			continue
		}
		p50, p99 := ratio(m.P50, etcd.P50), ratio(m.P99, etcd.P99)
		if c.name == "restart" {
			p50, p99 = ratio(m.RestartGraceful, etcd.RestartGraceful), ratio(m.RestartKilled, etcd.RestartKilled)
		}
		fmt.Fprintf(w, "| | **%s : etcd** | **%s** | %s | %s | **%s** | %s | %s | %s | %s | |\n", kind,
			ratio(m.OpsPerSecond, etcd.OpsPerSecond), p50, p99, ratio(m.CPUPerThousand, etcd.CPUPerThousand),
			ratio(m.ClientCPU, etcd.ClientCPU), ratio(m.PeakRSSBytes, etcd.PeakRSSBytes), ratio(m.WrittenPerOp, etcd.WrittenPerOp), ratio(m.DevicePerOp, etcd.DevicePerOp))
	}
}

func (r *report) notes(w io.Writer) {
	fmt.Fprintln(w)
	seen := make(map[string]bool)
	for _, k := range r.order {
		seen[k.Case] = true
	}
	for _, c := range allCases() {
		if seen[c.name] {
			fmt.Fprintf(w, "- %s: %s.\n", c.name, c.about)
		}
	}
	fmt.Fprintln(w, "- CPU and charged bytes are summed over the members; peak RSS is that of the largest member since its start.")
	fmt.Fprintln(w, "- Charged is write_bytes of /proc/<pid>/io. The kernel charges the whole folio for a page that is dirtied in it, so it overstates files that are overwritten in place. Disk is what the device of -dir has written, by anybody, while the case ran.")
}

func (r *report) writeJSON(path string) error {
	type row struct {
		rowKey
		Median result
		Runs   []result
	}
	out := struct {
		Date, Machine, Commit, Etcd string
		Rows                        []row
	}{Date: time.Now().UTC().Format(time.RFC3339), Machine: fmt.Sprintf("%s, %d cores, %s", cpuModel(), runtime.NumCPU(), kernel()), Commit: commit(), Etcd: cluster.EtcdVersion}
	for _, k := range r.order {
		out.Rows = append(out.Rows, row{k, median(r.runs[k]), r.runs[k]})
	}
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func ratio(a, b float64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", s*1e3)
	case d < 10*time.Second:
		return fmt.Sprintf("%.0f ms", s*1e3)
	}
	return fmt.Sprintf("%.1f s", s)
}

func size(b float64) string {
	switch {
	case b < 10_000:
		return fmt.Sprintf("%.0f B", b)
	case b < 10_000_000:
		return fmt.Sprintf("%.0f KB", b/1e3)
	}
	return fmt.Sprintf("%.0f MB", b/1e6)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(data)) {
		if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	data, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return runtime.GOOS
	}
	return "Linux " + strings.TrimSpace(string(data))
}

func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--exclude", "*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
