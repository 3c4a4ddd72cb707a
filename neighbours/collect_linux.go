package neighbours

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
)

const (
	// closely is how many processes of a sample are looked at closely: their files and threads.
	closely = 16
	// maxFiles and maxThreads bound what is looked at of one process.
	maxFiles, maxThreads = 1024, 64
	sectorBytes          = 512
)

// leastRate is what a process has to write for a place in a sample, bytes a second.
const leastRate = 8 << 10

// syncCalls are the numbers of the system calls that wait for a disk: fsync, fdatasync, sync,
// syncfs, msync, sync_file_range.
func syncCalls() []string {
	switch runtime.GOARCH {
	case "amd64":
		return []string{"74", "75", "162", "306", "26", "277"}
	case "arm64", "riscv64", "loong64":
		return []string{"82", "83", "81", "267", "227", "84"}
	}
	return nil
}

// A Collector reads the counters of processes, cgroups and of one disk, and tells what they grew by.
// It belongs to one goroutine.
type Collector struct {
	target  Target
	disks   disks
	proc    procfs.FS
	block   blockdevice.FS
	self    int      // of this process, which is no neighbour
	unified string   // where cgroup version 2 is mounted; empty: it is not
	syncs   []string // numbers of system calls

	last      time.Time
	disk      blockdevice.IOStats
	processes map[int]*process
	groups    map[string]*cgroup // by path in the hierarchy of version 2
}

// counters are those of a process since its start, with those of the children that it waited for.
type counters struct{ calls, wchar, dirtied int64 }

func (c counters) minus(d counters) counters {
	return counters{c.calls - d.calls, c.wchar - d.wchar, c.dirtied - d.dirtied}
}

// written is the estimate of what went to files.
func (c counters) written() (int64, From) {
	switch {
	case c.dirtied <= 0:
		return 0, FromSyscalls
	case c.calls <= 0:
		return c.dirtied, FromDirtied
	}
	return max(0, min(c.wchar, c.dirtied)), FromSyscalls
}

type process struct {
	counters
	parent   int
	name     string
	path     string // of its cgroup of version 2
	group    Group
	kernel   bool
	hidden   bool     // its counters could not be read the last time
	grew     counters // in this interval
	here     bool     // a file of it that is open for writing was seen on the disk
	away     bool     // ... on another one
	lookedAt time.Time
}

type cgroup struct {
	bytes  int64 // that the device was given for it
	grew   int64
	known  bool // io.stat could be read
	writer string
}

// New makes a collector for the disk that target's log is on.
func New(target Target) (*Collector, error) {
	c := &Collector{target: target, self: os.Getpid(), syncs: syncCalls(), processes: map[int]*process{}, groups: map[string]*cgroup{}}
	var err error
	if c.proc, err = procfs.NewDefaultFS(); err != nil {
		return nil, err
	}
	if c.block, err = blockdevice.NewDefaultFS(); err != nil {
		return nil, err
	}
	c.disks = newDisks(c.proc)
	if len(target.Disks) == 0 {
		return nil, fmt.Errorf("%s is on no disk of this machine: a file system in memory, or of the network", target.Dir)
	}
	c.unified = unifiedMount(c.proc)
	return c, nil
}

// Disk names the disks that are looked at.
func (c *Collector) Disk() string { return strings.Join(c.target.Disks, ", ") }

// Look tells what happened since the last call. The first one, and one after which the disk's
// counters began anew, only remember: ok is false.
func (c *Collector) Look(now time.Time) (s Sample, ok bool, err error) {
	first := c.last.IsZero()
	s = Sample{At: now, Took: now.Sub(c.last)}
	c.last = now
	known, err := c.readDisk(&s.Disk)
	if err != nil {
		return s, false, err
	}
	if err := c.readProcesses(&s, first); err != nil {
		return s, false, err
	}
	c.follow()
	c.readGroups()
	if first || !known || s.Took <= 0 {
		return s, false, nil
	}
	s.Writers = c.writers(now, s.Took)
	return s, true, nil
}

// follow finds the member again that was started anew.
func (c *Collector) follow() {
	if c.target.PID == 0 || c.processes[c.target.PID] != nil {
		return
	}
	for pid, p := range c.processes {
		if p.name != c.target.Program {
			continue
		}
		if t, err := Member(pid); err == nil && t.Dir == c.target.Dir {
			c.target.PID = pid
			return
		}
	}
}

// readDisk is what the disks' counters grew by.
func (c *Collector) readDisk(d *Disk) (known bool, err error) {
	all, err := c.block.ProcDiskstats()
	if err != nil {
		return false, err
	}
	var sum blockdevice.IOStats
	found := false
	for _, one := range all {
		if !slices.Contains(c.target.Disks, one.DeviceName) {
			continue
		}
		found = true
		sum.WriteSectors += one.WriteSectors
		sum.WriteIOs += one.WriteIOs
		sum.WriteTicks += one.WriteTicks
		sum.FlushRequestsCompleted += one.FlushRequestsCompleted
		sum.TimeSpentFlushing += one.TimeSpentFlushing
		sum.IOsTotalTicks += one.IOsTotalTicks
	}
	if !found {
		return false, fmt.Errorf("/proc/diskstats has no %s", c.Disk())
	}
	before := c.disk
	c.disk = sum
	if sum.WriteIOs < before.WriteIOs || sum.WriteSectors < before.WriteSectors {
		return false, nil
	}
	ms := func(now, before uint64) time.Duration { return time.Duration(now-before) * time.Millisecond }
	*d = Disk{
		Bytes: int64(sum.WriteSectors-before.WriteSectors) * sectorBytes, Writes: int64(sum.WriteIOs - before.WriteIOs),
		WriteTime: ms(sum.WriteTicks, before.WriteTicks), Flushes: int64(sum.FlushRequestsCompleted - before.FlushRequestsCompleted),
		FlushTime: ms(sum.TimeSpentFlushing, before.TimeSpentFlushing), Busy: ms(sum.IOsTotalTicks, before.IOsTotalTicks),
	}
	return true, nil
}

// readProcesses fills in what each process wrote since the last time.
func (c *Collector) readProcesses(s *Sample, first bool) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	seen := make(map[int]bool, len(c.processes))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == c.self && pid != c.target.PID {
			continue
		}
		p := c.processes[pid]
		if p != nil && p.kernel {
			seen[pid] = true
			continue
		}
		now, err := readCounters(pid)
		switch {
		case errors.Is(err, os.ErrPermission):
			s.Hidden++
			// Its cgroup is to be known all the same: io.stat may tell.
			if p == nil {
				p = c.newProcess(pid)
			}
			if p == nil {
				continue
			}
			if p.kernel {
				s.Hidden--
			}
			seen[pid], p.hidden = true, true
			c.processes[pid] = p
			continue
		case err != nil:
			continue // it has ended
		}
		seen[pid] = true
		if p == nil || now.wchar < p.wchar || now.dirtied < p.dirtied { // or its number was given to another
			if p = c.newProcess(pid); p == nil {
				delete(seen, pid)
				continue
			}
			c.processes[pid] = p
			p.hidden = first
		}
		if p.hidden { // since when it wrote what it has is not known
			p.counters, p.hidden = now, false
		}
		p.grew = now.minus(p.counters)
		p.counters = now
	}
	c.settle(seen)
	return nil
}

// settle forgets the processes that were not seen again.
func (c *Collector) settle(seen map[int]bool) {
	var gone []int
	for pid, p := range c.processes {
		if seen[pid] {
			continue
		}
		gone = append(gone, pid)
		// What it wrote is now in the counters of who waited for it, or of who waited for that one if
		// it ended, too; and it was counted before.
		up := p.parent
		for n := 0; !seen[up] && c.processes[up] != nil && n < len(c.processes); n++ {
			up = c.processes[up].parent
		}
		if parent := c.processes[up]; parent != nil && seen[up] {
			parent.grew.wchar = max(0, parent.grew.wchar-p.wchar)
			parent.grew.dirtied = max(0, parent.grew.dirtied-p.dirtied)
			parent.grew.calls = max(0, parent.grew.calls-p.calls)
		}
	}
	for _, pid := range gone {
		delete(c.processes, pid)
	}
}

func readCounters(pid int) (counters, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/io")
	if err != nil {
		return counters{}, err
	}
	var c counters
	for line := range bytes.Lines(text) {
		name, value, _ := bytes.Cut(line, []byte(": "))
		n, _ := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		switch string(name) {
		case "wchar":
			c.wchar = n
		case "syscw":
			c.calls = n
		case "write_bytes":
			c.dirtied = n
		}
	}
	return c, nil
}

// newProcess is nil if the process has ended.
func (c *Collector) newProcess(pid int) *process {
	proc, err := c.proc.Proc(pid)
	if err != nil {
		return nil
	}
	stat, err := proc.Stat()
	if err != nil {
		return nil
	}
	const kernelThread = 0x00200000 // PF_KTHREAD
	p := &process{parent: stat.PPID, name: stat.Comm, kernel: stat.Flags&kernelThread != 0}
	groups, _ := proc.Cgroups()
	var named string
	for _, g := range groups {
		switch {
		case g.HierarchyID == 0:
			p.path = g.Path
		case named == "" && groupOf(g.Path).Kind != "cgroup" && groupOf(g.Path) != Group{}:
			named = g.Path
		}
	}
	p.group = groupOf(p.path)
	if p.group == (Group{}) {
		p.group = groupOf(named)
	}
	if p.group.Kind == "pod" {
		// Kubernetes gives each container of a pod the pod's name as its host's.
		if name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/root/etc/hostname"); err == nil && len(name) < 256 && len(bytes.TrimSpace(name)) > 0 {
			p.group.Name = string(bytes.TrimSpace(name))
		}
	}
	return p
}

// readGroups fills in what the device was given for each cgroup since the last time.
func (c *Collector) readGroups() {
	if c.unified == "" {
		return
	}
	paths := map[string]bool{}
	for _, p := range c.processes {
		if p.path != "" && p.path != "/" && !p.kernel {
			paths[p.path] = true
		}
	}
	for path := range paths {
		text, err := os.ReadFile(filepath.Join(c.unified, path, "io.stat"))
		g := c.groups[path]
		if err != nil {
			if g != nil {
				g.known, g.grew = false, 0
			}
			continue
		}
		bytes := ioStat(string(text), c.target.Numbers)
		switch {
		case g == nil:
			c.groups[path] = &cgroup{bytes: bytes, known: true}
		case bytes < g.bytes: // made anew
			g.bytes, g.grew, g.known = bytes, bytes, true
		default:
			g.bytes, g.grew, g.known = bytes, bytes-g.bytes, true
		}
	}
	for path := range c.groups {
		if !paths[path] {
			delete(c.groups, path)
		}
	}
}

// ioStat sums the bytes written to devices, by number, of a file io.stat of cgroup version 2.
func ioStat(text string, numbers []string) (sum int64) {
	for line := range strings.Lines(text) {
		device, values, _ := strings.Cut(line, " ")
		if !slices.Contains(numbers, device) {
			continue
		}
		for _, pair := range strings.Fields(values) {
			if value, ok := strings.CutPrefix(pair, "wbytes="); ok {
				n, _ := strconv.ParseInt(value, 10, 64)
				sum += n
			}
		}
	}
	return sum
}

// writers are who wrote in an interval of this length.
func (c *Collector) writers(now time.Time, took time.Duration) []Writer {
	least := int64(leastRate * took.Seconds())
	type one struct {
		pid int
		p   *process
		w   Writer
	}
	var all []one
	byGroup := map[string]int64{} // what its processes wrote by their calls, by path
	for pid, p := range c.processes {
		bytes, from := p.grew.written()
		p.grew = counters{}
		own := pid == c.target.PID
		if bytes <= 0 && !own {
			continue
		}
		byGroup[p.path] += bytes
		all = append(all, one{pid, p, Writer{PID: pid, Bytes: bytes, From: from, Own: own, Group: p.group}})
	}
	slices.SortFunc(all, func(a, b one) int {
		return cmp.Or(cmp.Compare(b.w.Bytes, a.w.Bytes), cmp.Compare(a.pid, b.pid))
	})
	var writers []Writer
	told := map[string]bool{} // groups of which a process is named
	for i, o := range all {
		if o.w.Bytes < least && !o.w.Own {
			continue
		}
		if i < closely || o.w.Own {
			c.lookClosely(now, o.pid, o.p, &o.w)
		} else {
			o.w.Name, o.w.Unplaced = o.p.name, true
		}
		if g := c.groups[o.p.path]; g != nil && g.known && byGroup[o.p.path] > 0 {
			o.w.Bytes, o.w.From = int64(float64(g.grew)*float64(o.w.Bytes)/float64(byGroup[o.p.path])), FromCgroup
			o.w.Unplaced, o.w.Elsewhere = false, false
			if !told[o.p.path] {
				g.writer = o.w.Name
			}
			told[o.p.path] = true
			if o.w.Bytes < least && !o.w.Own {
				continue
			}
		}
		writers = append(writers, o.w)
	}
	// What was written back later, or by processes that may not be looked at.
	for path, g := range c.groups {
		if g.known && g.grew >= least && !told[path] {
			own := c.processes[c.target.PID]
			w := Writer{Name: g.writer, Group: groupOf(path), Bytes: g.grew, From: FromCgroup, Own: own != nil && own.path == path}
			if w.Own {
				w.Name, w.PID = own.name, c.target.PID
			}
			writers = append(writers, w)
		}
	}
	return merge(writers)
}

// lookClosely finds a process' name, on which disks it has files open for writing, and whether its
// threads wait for a disk.
func (c *Collector) lookClosely(now time.Time, pid int, p *process, w *Writer) {
	dir := "/proc/" + strconv.Itoa(pid)
	if comm, err := os.ReadFile(dir + "/comm"); err == nil {
		p.name = string(bytes.TrimSpace(comm))
	}
	w.Name = p.name
	if fds, err := readNames(dir+"/fd", maxFiles); err == nil {
		for _, fd := range fds {
			name := dir + "/fd/" + fd
			link, err := os.Lstat(name)
			if err != nil || link.Mode().Perm()&0o200 == 0 {
				continue // not open for writing
			}
			on, _ := c.disks.ofFile(name, pid)
			switch {
			case len(on) == 0:
			case slices.ContainsFunc(on, func(d string) bool { return slices.Contains(c.target.Disks, d) }):
				p.here, p.lookedAt = true, now
			default:
				p.away = true
			}
		}
	}
	// A process that had a file on this disk open a while ago may write there still.
	const remembered = time.Minute
	if p.here && now.Sub(p.lookedAt) > remembered {
		p.here = false
	}
	w.Elsewhere, w.Unplaced = !w.Own && p.away && !p.here, !w.Own && !p.away && !p.here
	if c.syncs == nil {
		return
	}
	threads, err := readNames(dir+"/task", maxThreads)
	if err != nil {
		return
	}
	for _, tid := range threads {
		text, err := os.ReadFile(dir + "/task/" + tid + "/syscall")
		if err != nil {
			continue
		}
		w.Looks = 1
		number, _, _ := strings.Cut(string(text), " ")
		if slices.Contains(c.syncs, number) {
			w.Syncs = 1
			return
		}
	}
}

func readNames(dir string, limit int) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(limit)
	return names, err
}
