package neighbours

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
)

// logDir is the directory of a raft log that a file belongs to: etcd's wal files, and the segments of
// Belay's. ok is false if the file is neither.
func logDir(file string) (dir string, ok bool) {
	base := filepath.Base(file)
	if strings.HasSuffix(base, ".wal") || strings.HasPrefix(base, "segment-") && strings.HasSuffix(base, ".log") {
		return filepath.Dir(file), true
	}
	return "", false
}

// Member is the member of etcd or Belay that a process is: who has the file of a raft log open for
// writing.
func Member(pid int) (Target, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return Target{}, err
	}
	dir := "/proc/" + strconv.Itoa(pid)
	fds, err := readNames(dir+"/fd", maxFiles)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return Target{}, fmt.Errorf("there is no process %d", pid)
		}
		return Target{}, fmt.Errorf("the files of process %d: %w", pid, err)
	}
	disks := newDisks(fs)
	for _, fd := range fds {
		name := dir + "/fd/" + fd
		file, err := os.Readlink(name)
		if err != nil {
			continue
		}
		at, ok := logDir(file)
		link, err := os.Lstat(name)
		if !ok || err != nil || link.Mode().Perm()&0o200 == 0 {
			continue
		}
		t := Target{PID: pid, Dir: at}
		if comm, err := os.ReadFile(dir + "/comm"); err == nil {
			t.Program = strings.TrimSpace(string(comm))
		}
		t.Disks, _ = disks.ofFile(name, pid)
		t.Numbers = numbersOf(t.Disks)
		return t, nil
	}
	return Target{}, fmt.Errorf("process %d has no raft log of etcd or Belay open", pid)
}

// FindMembers are all members that run on this machine and may be looked at. That the files of some
// processes may not be is no error, unless there is no member among the others.
func FindMembers() ([]Target, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []Target
	hidden := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		t, err := Member(pid)
		switch {
		case err == nil:
			all = append(all, t)
		case errors.Is(err, os.ErrPermission):
			hidden++
		}
	}
	if len(all) == 0 && hidden > 0 {
		return nil, fmt.Errorf("no member is among the processes that may be looked at; %d others may not: run it as root, or as the member's user", hidden)
	}
	return all, nil
}

// Self is this process as the member whose log is in a directory.
func Self(dir string) (Target, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return Target{}, err
	}
	t := Target{PID: os.Getpid(), Program: filepath.Base(os.Args[0]), Dir: dir}
	t.Disks, _ = newDisks(fs).ofFile(dir, 0)
	t.Numbers = numbersOf(t.Disks)
	return t, nil
}

// MemberIn is the member whose log is below a directory, whether it runs or not.
func MemberIn(dir string) (Target, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Target{}, err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return Target{}, err
	}
	members, _ := FindMembers() // that there is none is no error
	for _, t := range members {
		at := t.Dir
		if real, err := filepath.EvalSymlinks(at); err == nil {
			at = real
		}
		if rel, err := filepath.Rel(abs, at); err == nil && filepath.IsLocal(rel) {
			return t, nil
		}
	}
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return Target{}, err
	}
	t := Target{Dir: abs}
	for _, sub := range []string{"member/wal", "member/log"} {
		if real, err := filepath.EvalSymlinks(filepath.Join(abs, sub)); err == nil {
			t.Dir = real
		}
	}
	t.Disks, _ = newDisks(fs).ofFile(t.Dir, 0)
	t.Numbers = numbersOf(t.Disks)
	return t, nil
}

// Ports are the addresses, host:port, on which a process listens for TCP, as seen from here.
func Ports(pid int) []string {
	inodes := map[uint64]bool{}
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	fds, err := readNames(dir, maxFiles)
	if err != nil {
		return nil
	}
	for _, fd := range fds {
		link, _ := os.Readlink(dir + "/" + fd)
		if text, ok := strings.CutPrefix(link, "socket:["); ok {
			n, _ := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
			inodes[n] = true
		}
	}
	fs, err := procfs.NewFS("/proc/" + strconv.Itoa(pid)) // its network namespace
	if err != nil {
		return nil
	}
	const listening = 10
	var all []string
	//lint:ignore SA1019 it is asked once; netlink would be another dependency
	for _, table := range []func() (procfs.NetTCP, error){fs.NetTCP, fs.NetTCP6} {
		lines, err := table()
		if err != nil {
			continue
		}
		for _, line := range lines {
			if line.St != listening || !inodes[line.Inode] {
				continue
			}
			host := line.LocalAddr.String()
			if line.LocalAddr.IsUnspecified() {
				host = "127.0.0.1"
			}
			all = append(all, net.JoinHostPort(host, strconv.FormatUint(line.LocalPort, 10)))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
