package inject

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// Disk is a running slowfs, the disk of one member.
type Disk struct {
	Path string // where it is mounted

	mu  sync.Mutex
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// BuildSlowfs builds the file system into dir and returns the program's path.
func BuildSlowfs(ctx context.Context, dir string) (string, error) {
	root, err := cluster.Root()
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "slowfs")
	cmd := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(root, "proof", "inject", "slowfs"), "-o", out, ".")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build slowfs: %w\n%s", err, msg)
	}
	return out, nil
}

// Mountable returns why slowfs can not be used here, nil if it can.
func Mountable() error {
	if os.Geteuid() != 0 {
		return errors.New("mounting a file system needs root")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// MountDisk puts a slowfs at path; its files are kept in path + ".back".
func MountDisk(program, path string) (*Disk, error) {
	back := path + ".back"
	if err := errors.Join(os.MkdirAll(path, 0o700), os.MkdirAll(back, 0o700)); err != nil {
		return nil, err
	}
	d := &Disk{Path: path, cmd: exec.Command(program, "-back", back, "-mount", path)}
	// Its own process group: Ctrl-C is for us, and we tell it when to end.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.cmd.Stderr = os.Stderr
	var err error
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	d.out = bufio.NewReader(out)
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := d.answer(); err != nil {
		d.Close()
		return nil, fmt.Errorf("slowfs on %s: %w", path, err)
	}
	return d, nil
}

func (d *Disk) answer() (string, error) {
	line, err := d.out.ReadString('\n')
	if err != nil {
		return "", err
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(line), "ok")
	if !ok {
		return "", errors.New(strings.TrimSpace(line))
	}
	return strings.TrimSpace(rest), nil
}

// Tell sends slowfs one command and returns its answer.
func (d *Disk) Tell(format string, args ...any) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := fmt.Fprintf(d.in, format+"\n", args...); err != nil {
		return "", err
	}
	return d.answer()
}

// Met counts the operations that a fault has met.
func (d *Disk) Met() (int, error) {
	text, err := d.Tell("stats")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// Close unmounts. Operations that hang are released first, so that the member can be killed.
func (d *Disk) Close() {
	d.in.Close()
	ended := make(chan struct{})
	go func() { _ = d.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill()
		<-ended
	}
	// It does so itself, unless it was killed.
	_ = syscall.Unmount(d.Path, syscall.MNT_DETACH)
}
