package cluster

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process has cost so far, as the kernel counts it.
type Usage struct {
	CPU          time.Duration // user and system time of all its threads
	RSSBytes     int64         // resident now
	PeakRSSBytes int64         // most ever resident since start or [ResetPeak]
	WrittenBytes int64         // sent to the block layer (write_bytes)
}

// clockTicks is USER_HZ, which is 100 on every Linux that Go runs on.
const clockTicks = 100

// ProcessUsage reads the usage of a live process from /proc.
func ProcessUsage(pid int) (Usage, error) {
	var u Usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The command, in brackets, may itself hold spaces and brackets.
	rest := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	fields := strings.Fields(rest) // fields[0] is field 3 of proc(5)
	if len(fields) < 13 {
		return u, fmt.Errorf("cluster: /proc/%d/stat: %d fields", pid, len(fields))
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return u, fmt.Errorf("cluster: /proc/%d/stat: bad times %q %q", pid, fields[11], fields[12])
	}
	u.CPU = time.Duration(user+system) * time.Second / clockTicks
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	u.RSSBytes = procField(string(status), "VmRSS:") << 10
	u.PeakRSSBytes = procField(string(status), "VmHWM:") << 10
	// Readable only by the same user with ptrace rights; 0 where it is not.
	if io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid)); err == nil {
		u.WrittenBytes = procField(string(io), "write_bytes:")
	}
	return u, nil
}

// ResetPeak makes PeakRSSBytes count from now on.
func ResetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

func procField(text, name string) int64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseInt(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}
