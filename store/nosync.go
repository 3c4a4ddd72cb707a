package store

import "github.com/cockroachdb/pebble/v2/vfs"

// noSyncFS is a file system whose syncs do nothing: for tests and throw-away members. A crash of
// the machine, though not of the process, may then leave anything.
type noSyncFS struct{ vfs.FS }

type noSyncFile struct{ vfs.File }

func (noSyncFile) Sync() error                         { return nil }
func (noSyncFile) SyncData() error                     { return nil }
func (noSyncFile) SyncTo(int64) (full bool, err error) { return false, nil }

func noSync(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return noSyncFile{f}, nil
}

func (fs noSyncFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return noSync(fs.FS.Create(name, c))
}

func (fs noSyncFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return noSync(fs.FS.OpenReadWrite(name, c, o...))
}

func (fs noSyncFS) ReuseForWrite(oldName, newName string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return noSync(fs.FS.ReuseForWrite(oldName, newName, c))
}

func (fs noSyncFS) OpenDir(name string) (vfs.File, error) { return noSync(fs.FS.OpenDir(name)) }

func (fs noSyncFS) Unwrap() vfs.FS { return fs.FS }
