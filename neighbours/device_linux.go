package neighbours

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// disks finds the disks that files are on. A partition is on its disk, a volume of the device mapper
// or an array on all disks below it, and what is in a container's own file system on the disk of its
// upper layer. It remembers by the numbers of file systems.
type disks struct {
	proc  procfs.FS
	known map[uint64][]string // by st_dev; empty: on none
}

func newDisks(proc procfs.FS) disks { return disks{proc, map[uint64][]string{}} }

// ofFile is on which disks a regular file is, as a process sees it: pid is that process, 0 this one.
// ok is false if it is none, or cannot be seen.
func (d disks) ofFile(name string, pid int) (on []string, ok bool) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, false
	}
	// Not Mode().IsRegular: the kernel's anonymous files (eventfd, epoll) have no type at all.
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Mode&unix.S_IFMT != unix.S_IFREG && !info.IsDir() {
		return nil, false
	}
	return d.of(info, pid, 0)
}

func (d disks) of(info fs.FileInfo, pid, depth int) ([]string, bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, false
	}
	device := uint64(stat.Dev)
	if on, ok := d.known[device]; ok {
		return on, true
	}
	number := fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
	on := below(number)
	if len(on) == 0 && depth < 3 {
		on = d.behindMount(number, pid, depth)
	}
	d.known[device] = on
	return on, true
}

// behindMount is for file systems whose number is not that of a device: btrfs, and overlays, as
// containers have them.
func (d disks) behindMount(number string, pid, depth int) []string {
	mounts, err := d.proc.GetProcMounts(pid)
	if pid == 0 {
		mounts, err = d.proc.GetMounts()
	}
	if err != nil {
		return nil
	}
	for _, m := range mounts {
		if m.MajorMinorVer != number {
			continue
		}
		if upper := m.SuperOptions["upperdir"]; upper != "" {
			if info, err := os.Stat(upper); err == nil {
				on, _ := d.of(info, 0, depth+1)
				return on
			}
		}
		info, err := os.Stat(m.Source)
		switch {
		case err != nil:
		case info.IsDir() && strings.HasPrefix(m.FSType, "fuse"): // one that passes on to a directory
			on, _ := d.of(info, 0, depth+1)
			return on
		case info.Mode()&os.ModeDevice != 0:
			if stat, ok := info.Sys().(*syscall.Stat_t); ok {
				return below(fmt.Sprintf("%d:%d", unix.Major(uint64(stat.Rdev)), unix.Minor(uint64(stat.Rdev))))
			}
		}
	}
	return nil
}

// below are the names of the whole disks that a block device consists of; none if number is none's.
func below(number string) []string {
	at, err := filepath.EvalSymlinks("/sys/dev/block/" + number)
	if err != nil {
		return nil
	}
	if _, err := os.Stat(filepath.Join(at, "partition")); err == nil {
		at = filepath.Dir(at)
	}
	slaves, err := os.ReadDir(filepath.Join(at, "slaves"))
	if err != nil || len(slaves) == 0 {
		// The file behind a loop device is on a disk, too, and so is what is written to it.
		if file, err := os.ReadFile(filepath.Join(at, "loop", "backing_file")); err == nil {
			if info, err := os.Stat(strings.TrimSpace(string(file))); err == nil {
				if stat, ok := info.Sys().(*syscall.Stat_t); ok {
					under := below(fmt.Sprintf("%d:%d", unix.Major(uint64(stat.Dev)), unix.Minor(uint64(stat.Dev))))
					if len(under) > 0 {
						return under
					}
				}
			}
		}
		return []string{filepath.Base(at)}
	}
	var all []string
	for _, slave := range slaves {
		text, err := os.ReadFile(filepath.Join(at, "slaves", slave.Name(), "dev"))
		if err != nil {
			continue
		}
		all = append(all, below(strings.TrimSpace(string(text)))...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// numbersOf are the numbers of disks, as io.stat has them.
func numbersOf(names []string) (numbers []string) {
	for _, name := range names {
		if text, err := os.ReadFile("/sys/class/block/" + name + "/dev"); err == nil {
			numbers = append(numbers, strings.TrimSpace(string(text)))
		}
	}
	return numbers
}

// unifiedMount is where cgroup version 2 is mounted with its io controller; empty: nowhere.
func unifiedMount(proc procfs.FS) string {
	mounts, err := proc.GetMounts()
	if err != nil {
		return ""
	}
	for _, m := range mounts {
		if m.FSType != "cgroup2" {
			continue
		}
		controllers, err := os.ReadFile(filepath.Join(m.MountPoint, "cgroup.controllers"))
		if err == nil && slices.Contains(strings.Fields(string(controllers)), "io") {
			return m.MountPoint
		}
	}
	return ""
}
