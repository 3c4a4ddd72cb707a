package sim

import (
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

const (
	dataDir  = "data"
	logDir   = "data/log"
	storeDir = "data/store"
)

func ofLog(path string) bool { return strings.HasPrefix(path, logDir) }

// A gate stops whoever comes to it until it is opened.
type gate struct {
	mu   sync.Mutex
	ch   chan struct{} // nil: open
	last time.Time     // when it was opened last
	gone bool          // stays open
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch == nil && !g.gone {
		g.ch = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch != nil {
		close(g.ch)
		g.ch, g.last = nil, time.Now()
	}
}

// shutAfter reports whether the gate was shut at any time after t.
func (g *gate) shutAfter(t time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ch != nil || g.last.After(t)
}

// retire opens the gate for good.
func (g *gate) retire() {
	g.mu.Lock()
	g.gone = true
	g.mu.Unlock()
	g.open()
}

func (g *gate) pass() {
	for {
		g.mu.Lock()
		ch := g.ch
		g.mu.Unlock()
		if ch == nil {
			return
		}
		<-ch
	}
}

// disk is the disk of one life of a member: what a crash leaves of it becomes the disk of the next,
// while the process that crashed keeps writing to this one, where nobody sees it.
type disk struct {
	mem *vfs.MemFS
	fs  vfs.FS

	pause     *gate // all operations
	logSync   gate  // syncs of the log
	storeSync gate  // syncs of the store
	logOps    gate  // what changes the log's files, names and directories included
	storeOps  gate  // the same of the store
	slow      atomic.Int64
	slowUntil atomic.Int64 // Unix nanoseconds: when slow ended last
	logError  atomic.Pointer[error]
	// storeError is what writes and syncs of the store's tables give. Not of its
	// manifest: the engine ends the process there, in the middle of what it does,
	// and a bubble cannot be left with what remains.
	storeError atomic.Pointer[error]
}

func newDisk(mem *vfs.MemFS, pause *gate, mu mutation) *disk {
	d := &disk{mem: mem, pause: pause}
	var fs vfs.FS = mem
	switch mu {
	case skipSync:
		fs = lyingFS{FS: mem, sync: func(vfs.File) error { return nil }}
	case linkLater:
		fs = unsyncedNames{mem}
	case ackEarly:
		fs = lyingFS{FS: mem, sync: func(f vfs.File) error {
			time.AfterFunc(earlyBy, func() {
				defer func() { _ = recover() }() // closed meanwhile
				_ = f.Sync()
			})
			return nil
		}}
	}
	d.fs = errorfs.Wrap(fs, d)
	return d
}

// repair ends all faults of the disk.
func (d *disk) repair() {
	d.logError.Store(nil)
	d.storeError.Store(nil)
	d.quick()
	for _, g := range d.gates() {
		g.open()
	}
}

func (d *disk) gates() []*gate { return []*gate{&d.logSync, &d.storeSync, &d.logOps, &d.storeOps} }

// quick ends slow.
func (d *disk) quick() {
	if d.slow.Swap(0) > 0 {
		d.slowUntil.Store(time.Now().UnixNano())
	}
}

// troubledAfter reports whether syncs of the log were kept waiting after t.
func (d *disk) troubledAfter(t time.Time) bool {
	return d.logSync.shutAfter(t) || d.logOps.shutAfter(t) || d.slow.Load() > 0 || d.slowUntil.Load() > t.UnixNano()
}

// retire ends them, and all that are still to come.
func (d *disk) retire() {
	d.repair()
	for _, g := range d.gates() {
		g.retire()
	}
	d.pause.retire()
}

var (
	errIO      error = syscall.EIO
	errNoSpace error = syscall.ENOSPC
)

// MaybeError makes disk an errorfs.Injector.
func (d *disk) MaybeError(op errorfs.Op) error {
	d.pause.pass()
	switch op.Kind {
	case errorfs.OpOpen, errorfs.OpFileRead, errorfs.OpFileReadAt, errorfs.OpFileStat, errorfs.OpStat, errorfs.OpList, errorfs.OpFileClose:
		// What a stalled disk still answers, from the page cache.
	default:
		if ofLog(op.Path) {
			d.logOps.pass()
		} else {
			d.storeOps.pass()
		}
	}
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
		if slow := d.slow.Load(); slow > 0 {
			time.Sleep(time.Duration(slow))
		}
		if ofLog(op.Path) {
			d.logSync.pass()
		} else {
			d.storeSync.pass()
		}
	case errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpCreate, errorfs.OpReuseForWrite, errorfs.OpFilePreallocate:
	default:
		return nil
	}
	var err *error
	switch {
	case ofLog(op.Path):
		err = d.logError.Load()
	case strings.HasSuffix(op.Path, ".sst"), strings.HasSuffix(op.Path, ".blob"):
		err = d.storeError.Load()
	}
	if err != nil {
		return *err
	}
	return nil
}

func (d *disk) String() string { return "disk of a simulated member" }

const earlyBy = 400 * time.Millisecond

// lyingFS changes what a sync of the log's files does.
type lyingFS struct {
	vfs.FS
	sync func(vfs.File) error
}

func (l lyingFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !ofLog(name) {
		return f, err
	}
	return lyingFile{f, l.sync}, nil
}

func (l lyingFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.Create(name, c)
	return l.wrap(name, f, err)
}

func (l lyingFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := l.FS.OpenReadWrite(name, c, o...)
	return l.wrap(name, f, err)
}

func (l lyingFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.ReuseForWrite(old, name, c)
	return l.wrap(name, f, err)
}

// unsyncedNames does not sync the names of kept segments.
type unsyncedNames struct{ vfs.FS }

func (u unsyncedNames) OpenDir(name string) (vfs.File, error) {
	f, err := u.FS.OpenDir(name)
	if err != nil || name != storeDir+"/segments" {
		return f, err
	}
	return lyingFile{f, func(vfs.File) error { return nil }}, nil
}

type lyingFile struct {
	vfs.File
	sync func(vfs.File) error
}

func (f lyingFile) Sync() error     { return f.sync(f.File) }
func (f lyingFile) SyncData() error { return f.sync(f.File) }
func (f lyingFile) SyncTo(int64) (bool, error) {
	return true, f.sync(f.File)
}
