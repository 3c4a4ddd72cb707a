package budget

import (
	"bufio"
	"bytes"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// Limit is how much memory there is, and what says so.
type Limit struct {
	Bytes  int64
	Source Source
}

// Source is what limits the memory.
type Source string

const (
	Machine    Source = "machine"
	Cgroup     Source = "cgroup"
	GoMemLimit Source = "GOMEMLIMIT"
	// Unknown: this system does not tell, as outside of Linux. Bytes is unknownBytes then.
	Unknown Source = "unknown"
)

// unknownBytes is what is assumed where the system does not tell.
const unknownBytes = 8 << 30

// Find reads how much memory there is for this process. root is the root of the file system
// (os.DirFS("/")), goLimit the memory limit of Go's runtime, math.MaxInt64 for none. What cannot be
// read limits nothing.
func Find(root fs.FS, goLimit int64) Limit {
	least := Limit{math.MaxInt64, Unknown}
	lower := func(n int64, source Source) {
		if n > 0 && n < least.Bytes {
			least = Limit{n, source}
		}
	}
	lower(machineBytes(root), Machine)
	lower(cgroupBytes(root), Cgroup)
	if least.Source == Unknown {
		least.Bytes = unknownBytes
	}
	lower(goLimit, GoMemLimit)
	return least
}

func machineBytes(root fs.FS) int64 {
	data, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) >= 2 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil || kib > math.MaxInt64>>10 {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// cgroupBytes is the least limit of the cgroups that the process is in, or of those above them: a
// process is killed when any of them is full. 0: none is known.
func cgroupBytes(root fs.FS) (least int64) {
	memberships, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0
	}
	mounts := cgroupMounts(root)
	for line := range strings.Lines(string(memberships)) {
		// hierarchy:controllers:path; version 2 is 0::path
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		version, file := 0, ""
		switch {
		case f[0] == "0" && f[1] == "":
			version, file = 2, "memory.max"
		case contains(f[1], "memory"):
			version, file = 1, "memory.limit_in_bytes"
		default:
			continue
		}
		for _, m := range mounts {
			if m.version != version {
				continue
			}
			for dir := m.under(f[2]); ; dir = path.Dir(dir) {
				if n := bound(root, path.Join(m.at, dir, file)); n > 0 && (least == 0 || n < least) {
					least = n
				}
				if dir == "/" || dir == "." {
					break
				}
			}
		}
	}
	return least
}

// cgroupMount is where a hierarchy of cgroups is mounted.
type cgroupMount struct {
	version  int
	at, root string // the mount point, without the leading slash; the part of the hierarchy that it shows
}

// under is a cgroup's folder in the mount. A container sees its own cgroup as the root of the mount,
// but, without a namespace of cgroups, its path as the host does.
func (m cgroupMount) under(group string) string {
	if rest, ok := strings.CutPrefix(group, m.root); ok && m.root != "/" && (rest == "" || rest[0] == '/') {
		return path.Join("/", rest)
	}
	if strings.HasPrefix(group, "/..") {
		return "/"
	}
	return path.Join("/", group)
}

func cgroupMounts(root fs.FS) (mounts []cgroupMount) {
	data, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		// id parent major:minor root mountpoint options [fields] - type source super-options
		mount, system, ok := strings.Cut(line, " - ")
		f, s := strings.Fields(mount), strings.Fields(system)
		if !ok || len(f) < 5 || len(s) < 3 {
			continue
		}
		m := cgroupMount{at: strings.TrimPrefix(f[4], "/"), root: f[3]}
		switch {
		case s[0] == "cgroup2":
			m.version = 2
		case s[0] == "cgroup" && contains(s[2], "memory"):
			m.version = 1
		default:
			continue
		}
		mounts = append(mounts, m)
	}
	return mounts
}

func contains(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// bound reads a limit. 0: there is none. Version 1 writes a number near the largest for none.
func bound(root fs.FS, name string) int64 {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil || n >= 1<<62 { // "max"
		return 0
	}
	return n
}
