package inject

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// ThreadsOf lists the threads of a process.
func ThreadsOf(pid int) (ids []int, err error) {
	dirs, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, d := range dirs {
		if id, err := strconv.Atoi(d.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// BurnCPU keeps all CPUs busy with other processes, times on each, until ctx ends; nice is their
// nice value.
func BurnCPU(ctx context.Context, times, nice int) error {
	var cmds []*exec.Cmd
	defer func() {
		for _, c := range cmds {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	for range times * runtime.NumCPU() {
		c := exec.Command("sh", "-c", "while :; do :; done")
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			return err
		}
		cmds = append(cmds, c)
		if err := Renice(c.Process.Pid, nice); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// mostNeighbourBytes bounds what HammerDisk writes in one run.
const mostNeighbourBytes = 4 << 30

// HammerDisk is a neighbour on the same disk: it writes as fast as it can and
// syncs every 64 MiB, until ctx ends or the bound is reached. It writes over
// one file of 1 GiB. It returns what it has written.
func HammerDisk(ctx context.Context, dir string) (written int64, err error) {
	path := filepath.Join(dir, "neighbour")
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	block := make([]byte, 4<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	for ctx.Err() == nil && written < mostNeighbourBytes {
		if _, err := f.WriteAt(block, written%(1<<30)); err != nil {
			return written, err
		}
		written += int64(len(block))
		if written%(64<<20) == 0 {
			if err := f.Sync(); err != nil {
				return written, err
			}
		}
	}
	<-ctx.Done()
	return written, nil
}

// Fill writes to path until only leave bytes are free on its file system, at
// most rate bytes a second. Stopped by ctx it leaves what it has written.
func Fill(ctx context.Context, path string, leave uint64, rate int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	pause := time.Duration(float64(time.Second) * float64(len(block)) / float64(rate))
	for ctx.Err() == nil {
		var st syscall.Statfs_t
		if err := syscall.Fstatfs(int(f.Fd()), &st); err != nil {
			return err
		}
		free := st.Bavail * uint64(st.Bsize)
		if free <= leave {
			return nil
		}
		if _, err := f.Write(block[:min(uint64(len(block)), free-leave)]); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
		Think(ctx, pause)
	}
	return nil
}

// Renice sets the priority of all threads of a process.
func Renice(pid, nice int) error {
	threads, err := ThreadsOf(pid)
	if err != nil {
		return err
	}
	for _, t := range threads {
		// A thread that has ended meanwhile wants no CPU.
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, t, nice); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("Renice %d: %w", pid, err)
		}
	}
	return nil
}

// Think waits for d, or until ctx ends. It is a pause of a user, not a wait for something.
func Think(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
