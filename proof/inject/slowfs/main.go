// Command slowfs is a disk that can be made to misbehave: a FUSE file system that passes everything
// through to another folder, and delays, hangs or fails operations on command.
//
//	slowfs -back DIR -mount DIR
//
// It reads commands from its standard input, one a line, and answers each with one line:
//
//	set KINDS delay DURATION   each such operation takes that much longer
//	set KINDS hang             each such operation waits until the next clear
//	set KINDS fail NUMBER      each such operation fails with that errno
//	clear                      the disk is back; what hung goes on
//	stats                      ok N: operations that a fault has met so far
//
// KINDS is a list with commas of
//
//	sync   fsync, fdatasync, fsync of a folder
//	write  write, allocate, truncate
//	meta   create, rename, remove, link, mkdir
//	read   read, look up, list, stat
//
// When the standard input ends, slowfs clears the fault, unmounts and ends: a
// parent that was killed leaves no hung process behind.
//
// This is a module of its own so that Belay itself does not depend on FUSE.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A fault is what happens to operations of some kinds. It is immutable: another fault replaces it.
type fault struct {
	kinds   map[string]bool
	delay   time.Duration
	errno   syscall.Errno
	hang    bool
	cleared chan struct{} // closed when this fault is over
}

// disk holds the present fault, nil if there is none.
type disk struct {
	fault atomic.Pointer[fault]
	met   atomic.Int64
}

// meet is called before each operation of the kind. It returns when the disk would get to it, with
// the error that the operation must return, if any. It ignores interrupts, as a real disk does.
func (d *disk) meet(kind string) syscall.Errno {
	f := d.fault.Load()
	if f == nil || !f.kinds[kind] {
		return 0
	}
	d.met.Add(1)
	switch {
	case f.hang:
		<-f.cleared
	case f.delay > 0:
		time.Sleep(f.delay)
	}
	return f.errno
}

func (d *disk) set(f *fault) {
	if old := d.fault.Swap(f); old != nil {
		close(old.cleared)
	}
}

// command carries out one line.
func (d *disk) command(line string) (answer string) {
	words := strings.Fields(line)
	switch {
	case len(words) == 1 && words[0] == "clear":
		d.set(nil)
		return "ok"
	case len(words) == 1 && words[0] == "stats":
		return fmt.Sprintf("ok %d", d.met.Load())
	case len(words) < 3 || words[0] != "set":
		return "error: unknown command " + strconv.Quote(line)
	}
	f := &fault{kinds: make(map[string]bool), cleared: make(chan struct{})}
	for _, k := range strings.Split(words[1], ",") {
		switch k {
		case "sync", "write", "meta", "read":
			f.kinds[k] = true
		default:
			return "error: unknown kind " + strconv.Quote(k)
		}
	}
	var err error
	switch {
	case words[2] == "hang" && len(words) == 3:
		f.hang = true
	case words[2] == "delay" && len(words) == 4:
		f.delay, err = time.ParseDuration(words[3])
	case words[2] == "fail" && len(words) == 4:
		var n int
		n, err = strconv.Atoi(words[3])
		f.errno = syscall.Errno(n)
	default:
		err = fmt.Errorf("unknown command %q", line)
	}
	if err != nil {
		return "error: " + err.Error()
	}
	d.set(f)
	return "ok"
}

// node is a file or folder. Operations on an open file come here too, since
// the bridge asks the node before the file handle.
type node struct {
	fs.LoopbackNode
	disk *disk
}

// file is an open file. It hides the file below from the kernel: a write that goes there directly
// would meet no fault.
type file struct{ *fs.LoopbackFile }

func (*file) PassthroughFd() (int, bool) { return 0, false }

type dirHandle interface {
	fs.FileReaddirenter
	fs.FileReleasedirer
	fs.FileSeekdirer
	fs.FileFsyncdirer
}

// dir is an open folder; the bridge asks it, not the node, to sync.
type dir struct {
	dirHandle
	disk *disk
}

func (f *dir) Fsyncdir(ctx context.Context, flags uint32) syscall.Errno {
	if e := f.disk.meet("sync"); e != 0 {
		return e
	}
	return f.dirHandle.Fsyncdir(ctx, flags)
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.disk.meet("read"); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Lookup(ctx, name, out)
}

func (n *node) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if e := n.disk.meet("read"); e != 0 {
		return e
	}
	return n.LoopbackNode.Getattr(ctx, f, out)
}

func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if e := n.disk.meet("read"); e != 0 {
		return nil, 0, e
	}
	f, openFlags, e := n.LoopbackNode.OpendirHandle(ctx, flags)
	if e != 0 {
		return nil, 0, e
	}
	return &dir{f.(dirHandle), n.disk}, openFlags, 0
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if e := n.disk.meet("read"); e != 0 {
		return nil, 0, e
	}
	f, openFlags, e := n.LoopbackNode.Open(ctx, flags)
	if e != 0 {
		return nil, 0, e
	}
	return &file{f.(*fs.LoopbackFile)}, openFlags, 0
}

func (n *node) Read(ctx context.Context, f fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if e := n.disk.meet("read"); e != 0 {
		return nil, e
	}
	return f.(fs.FileReader).Read(ctx, dest, off)
}

func (n *node) Write(ctx context.Context, f fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if e := n.disk.meet("write"); e != 0 {
		return 0, e
	}
	return f.(fs.FileWriter).Write(ctx, data, off)
}

func (n *node) Allocate(ctx context.Context, f fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	if e := n.disk.meet("write"); e != 0 {
		return e
	}
	return f.(fs.FileAllocater).Allocate(ctx, off, size, mode)
}

func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if e := n.disk.meet("write"); e != 0 {
		return e
	}
	return n.LoopbackNode.Setattr(ctx, f, in, out)
}

// Fsync passes fdatasync through as fdatasync (the library's own would make it an fsync), since the
// difference matters to a log that overwrites preallocated blocks.
func (n *node) Fsync(ctx context.Context, f fs.FileHandle, flags uint32) syscall.Errno {
	if e := n.disk.meet("sync"); e != 0 {
		return e
	}
	const datasync = 1 // FUSE_FSYNC_FDATASYNC
	if f, ok := f.(*file); ok && flags&datasync != 0 {
		if fd, ok := f.LoopbackFile.PassthroughFd(); ok {
			return fs.ToErrno(syscall.Fdatasync(fd))
		}
	}
	return f.(fs.FileFsyncer).Fsync(ctx, flags)
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if e := n.disk.meet("meta"); e != 0 {
		return nil, nil, 0, e
	}
	in, f, openFlags, e := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if e != 0 {
		return nil, nil, 0, e
	}
	return in, &file{f.(*fs.LoopbackFile)}, openFlags, 0
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.disk.meet("meta"); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Mkdir(ctx, name, mode, out)
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	if e := n.disk.meet("meta"); e != 0 {
		return e
	}
	return n.LoopbackNode.Unlink(ctx, name)
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	if e := n.disk.meet("meta"); e != 0 {
		return e
	}
	return n.LoopbackNode.Rmdir(ctx, name)
}

func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if e := n.disk.meet("meta"); e != 0 {
		return e
	}
	return n.LoopbackNode.Rename(ctx, name, to, newName, flags)
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.disk.meet("meta"); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Link(ctx, target, name, out)
}

func main() {
	back := flag.String("back", "", "folder that holds the files")
	mount := flag.String("mount", "", "folder to mount on")
	flag.Parse()
	if *back == "" || *mount == "" {
		fmt.Fprintln(os.Stderr, "usage: slowfs -back DIR -mount DIR")
		os.Exit(2)
	}
	if err := serve(*back, *mount); err != nil {
		fmt.Fprintf(os.Stderr, "slowfs: %v\n", err)
		os.Exit(1)
	}
}

func serve(back, mount string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(back, &st); err != nil {
		return fmt.Errorf("%s: %w", back, err)
	}
	d := &disk{}
	root := &fs.LoopbackRoot{Path: back, Dev: uint64(st.Dev)}
	root.NewNode = func(data *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{LoopbackNode: fs.LoopbackNode{RootData: data}, disk: d}
	}
	top := root.NewNode(root, nil, "", &st)
	root.RootNode = top
	// The kernel may keep what it knows: nobody else changes the files.
	known := time.Minute
	server, err := fs.Mount(mount, top, &fs.Options{
		AttrTimeout:  &known,
		EntryTimeout: &known,
		MountOptions: fuse.MountOptions{
			DirectMountStrict: true, // root, and no helper program
			FsName:            back,
			Name:              "slowfs",
			MaxWrite:          1 << 20,
		},
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w", mount, err)
	}
	var once sync.Once
	end := func() {
		once.Do(func() {
			d.set(nil)
			// Detached: files that a process still holds open do not keep it.
			_ = syscall.Unmount(mount, syscall.MNT_DETACH)
		})
	}
	fmt.Println("ok")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println(d.command(in.Text()))
	}
	end()
	_ = server // its goroutines end with the process, and the connection with them
	return in.Err()
}
