package doctor

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"

	"github.com/belaydb/belay/budget"
	configure "github.com/belaydb/belay/cli/doctor/config"
	"github.com/belaydb/belay/cli/doctor/disk"
	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/neighbours"
)

// maxConfig is how large a configuration that is read may be, bytes.
const maxConfig = 4 << 20

// anyOutput marks a command that judges --output itself.
const anyOutput = "any-output"

func (d *doctor) configCommand() *cobra.Command {
	var o configure.Options
	var check string
	var members []string
	var measure bool
	cmd := &cobra.Command{
		Use: "config", Short: "Prints a configuration with a reason for each setting, or checks one that exists",
		Annotations: map[string]string{anyOutput: ""},
		Long: `Prints the configuration of a member of a new cluster, of etcd or of Belay (--for), as the file of --config-file (-o yaml),
a systemd unit (-o systemd), variables (-o env) or a patch for kubeadm (-o kubeadm), with the reason for each setting, and with
--measure what it rests on: round trips to the other members' hosts, the disk, memory. With --check FILE it finds what is wrong in a
unit, a Kubernetes manifest, a file of variables or of --config-file that exists (- is standard input).`,
		Args: cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.StringVar(&check, "check", "", "a configuration to check, in any of the forms")
	fs.StringVar(&o.For, "for", configure.ForEtcd, "etcd or belay")
	fs.StringVar(&o.Self, "name", "", "the member whose configuration it is; default: the first of --members")
	fs.StringSliceVar(&members, "members", []string{"default=127.0.0.1"}, "all members, NAME=HOST, comma separated")
	fs.StringVar(&o.DataDir, "data-dir", "", "where its data is; default: /var/lib/etcd or /var/lib/belay")
	fs.StringVar(&o.WALDir, "wal-dir", "", "where its log is, if on a disk of its own")
	fs.StringVar(&o.CertDir, "cert-dir", "", "directory of server.crt, server.key, peer.crt, peer.key and ca.crt; none: no TLS, which is for loopback alone")
	fs.StringVar(&o.Token, "token", "", "initial-cluster-token; default: made of the members' names")
	fs.BoolVar(&o.Kubernetes, "kubernetes", false, "the cluster is for the API server of Kubernetes, which compacts by itself")
	fs.IntVar(&o.ClientPort, "client-port", 2379, "for clients")
	fs.IntVar(&o.PeerPort, "peer-port", 2380, "for members")
	fs.IntVar(&o.MetricsPort, "metrics-port", 2381, "for metrics, on this machine alone")
	fs.BoolVar(&measure, "measure", false, "measure round trips to the members' hosts, the disk of --data-dir, and memory; with --check: look at the disk and memory of this machine")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.For != configure.ForEtcd && o.For != configure.ForBelay {
			return usagef("--for %q: etcd or belay", o.For)
		}
		if check != "" {
			if d.output != "text" && d.output != "json" {
				return usagef("--output %q: with --check, text or json", d.output)
			}
			return d.checkConfig(check, o.For, measure)
		}
		for _, m := range members {
			name, host, _ := strings.Cut(m, "=")
			o.Members = append(o.Members, configure.Member{Name: name, Host: host})
		}
		if o.Self == "" {
			o.Self = o.Members[0].Name
		}
		if o.DataDir == "" {
			o.DataDir = "/var/lib/" + o.For
		}
		if o.Token == "" {
			o.Token = o.For + "-" + strings.ReplaceAll(strings.Join(namesOf(o.Members), "-"), "=", "")
		}
		o.Kubernetes = o.Kubernetes || d.output == string(configure.Kubeadm)
		if err := o.Validate(); err != nil {
			return usageError{err}
		}
		var m configure.Measured
		var slow []report.Finding
		if measure {
			m, slow = d.measured(cmd, o)
		}
		if d.output == "text" || d.output == "json" {
			return d.print(planned(o, m, slow))
		}
		text, err := configure.Write(configure.Form(d.output), o, m)
		if err != nil {
			return usageError{err}
		}
		_, err = io.WriteString(d.out, text)
		return err
	}
	return cmd
}

func namesOf(members []configure.Member) (names []string) {
	for _, m := range members {
		names = append(names, m.Name)
	}
	return names
}

// planned is a plan as a report, with what is wrong with the disk.
func planned(o configure.Options, m configure.Measured, slow []report.Finding) *report.Report {
	lines := configure.Plan(o, m)
	t := report.Table{Title: "Settings", Header: []string{"setting", "value"}}
	for _, l := range lines {
		t.Rows = append(t.Rows, []string{l.Name, l.Value})
		t.Notes = append(t.Notes, l.Name+": "+l.Reason)
	}
	r := &report.Report{Command: "doctor config", Subject: o.For + ", member " + o.Self, At: time.Now(), Tables: []report.Table{t}, Data: lines,
		Summary: []string{"To be used with -o yaml, systemd, env or kubeadm."}}
	for _, missing := range m.Missing {
		r.Add(report.Finding{ID: "config-not-measured", Severity: report.Unknown, Confidence: report.Certain, What: missing + "."})
	}
	for _, f := range slow {
		r.Add(f)
	}
	return r
}

func (d *doctor) checkConfig(name, of string, here bool) error {
	in := d.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxConfig))
	if err != nil {
		return err
	}
	f, err := configure.Read(text)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	// A unit may have its variables in files beside it.
	for _, file := range f.EnvFiles {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it may be another machine's
		}
		if more, err := configure.Read(text); err == nil && more.Form == configure.Env {
			for _, s := range more.Settings {
				s.Line = 0
				f.Settings = append(f.Settings, s)
			}
		}
	}
	var host configure.Host
	if here {
		host.MemoryBytes = memoryBytes()
		at := slices.IndexFunc(f.Settings, func(s configure.Setting) bool { return s.Name == "data-dir" })
		if at >= 0 {
			host.Shares = shares(f.Settings[at].Value)
		}
	}
	return d.print(configure.Check(f, name, of, host, time.Now()))
}

// shares are who else has data on the disk of a directory: the system, other members.
func shares(dir string) (others []string) {
	mine, err := neighbours.MemberIn(existing(dir))
	if err != nil || len(mine.Disks) == 0 {
		return nil
	}
	same := func(t neighbours.Target) bool {
		return slices.ContainsFunc(t.Disks, func(d string) bool { return slices.Contains(mine.Disks, d) })
	}
	if root, err := neighbours.MemberIn("/var/log"); err == nil && same(root) {
		others = append(others, "/var/log is on "+strings.Join(mine.Disks, ", ")+", too")
	}
	members, _ := neighbours.FindMembers() // those that may be seen
	for _, t := range members {
		if rel, err := filepath.Rel(dir, t.Dir); same(t) && (err != nil || !filepath.IsLocal(rel)) {
			others = append(others, fmt.Sprintf("%s, process %d, has its log in %s", t.Program, t.PID, t.Dir))
		}
	}
	return others
}

// existing is dir, or the nearest directory above it that is there.
func existing(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return dir
		}
		dir = up
	}
}

// trips is how many connections a round trip is measured by.
const trips = 11

// measured takes the round trips, the disk and the memory. What cannot be had is told. slow are the
// findings of `doctor disk`, if the disk is not good.
func (d *doctor) measured(cmd *cobra.Command, o configure.Options) (m configure.Measured, slow []report.Finding) {
	for _, one := range o.Members {
		if one.Name == o.Self {
			continue
		}
		took, err := roundTrip(net.JoinHostPort(one.Host, strconv.Itoa(o.PeerPort)))
		switch {
		case err != nil:
			m.Missing = append(m.Missing, fmt.Sprintf("the round trip to %s: %v", one.Host, err))
		case took > m.RTT:
			m.RTT, m.RTTOf = took, one.Host
		}
	}
	dir := existing(o.DataDir)
	options := disk.Options{Dir: dir, Block: 8000, Bytes: 8 << 20, For: 20 * time.Second}
	if disk.Member(dir) != "" {
		options.Rate, options.Bytes = carefulRate, carefulBytes
	}
	if r, err := disk.Measure(cmd.Context(), options); err != nil {
		m.Missing = append(m.Missing, fmt.Sprintf("the disk of %s: %v", dir, err))
	} else {
		m.Sync, m.Writes = time.Duration(r.P99*float64(time.Second)), r.Writes
		slow = faultsOf(r)
	}
	if m.Memory = memoryBytes(); m.Memory == 0 {
		m.Missing = append(m.Missing, "the memory: there is no /proc/meminfo")
	}
	if usage, err := vfs.Default.GetDiskUsage(dir); err != nil {
		m.Missing = append(m.Missing, fmt.Sprintf("the free space of %s: %v", dir, err))
	} else {
		m.Free = int64(usage.AvailBytes)
	}
	return m, slow
}

// faultsOf is what `doctor disk` finds wrong with a disk.
func faultsOf(r *disk.Result) (slow []report.Finding) {
	for _, f := range disk.Judge(r, time.Now(), "").Findings {
		if f.Severity != report.Good {
			slow = append(slow, f)
		}
	}
	return slow
}

// roundTrip is the median time that a TCP connection takes to be made, or refused, which both take one
// round trip.
func roundTrip(address string) (time.Duration, error) {
	var all []time.Duration
	for range trips {
		begin := time.Now()
		conn, err := net.DialTimeout("tcp", address, 2*time.Second)
		took := time.Since(begin)
		if err == nil {
			conn.Close()
		} else if !refused(err) {
			return 0, err
		}
		all = append(all, took)
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

func refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && strings.Contains(op.Err.Error(), "refused")
}

// memoryBytes is the machine's memory, or the limit of this process' cgroup if that is less; 0:
// unknown.
func memoryBytes() int64 {
	there := budget.Find(os.DirFS("/"), math.MaxInt64)
	if there.Source == budget.Unknown {
		return 0
	}
	return there.Bytes
}
