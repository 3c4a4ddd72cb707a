package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/raftlog"
)

// A damaged world has one member at a time whose disk has lost a file or flipped bits while it was
// down. What it may do: say so and stop, at the start or when it meets the damage, or be right all
// the same. A member that has stopped is taken out of the cluster by its operator, here changeOnce
// or settle. What it may not do is serve, acknowledge or vote by what is wrong; for that everything
// else that is checked is there.
//
// It does not damage what looks like a write that a crash interrupted: the last group of the raft
// log, and its last segment as a whole (raftlog, "Torn or damaged?").

// damage flips a byte of a file of the log or of the store, or loses the file.
func damage(mem *vfs.MemFS, r *rand.Rand, mu mutation) (what string, err error) {
	if mu == cutDamage {
		return cut(mem, r)
	}
	dir, files, limits := storeDir, []string(nil), map[string]int64{}
	if r.IntN(2) == 0 {
		dir = logDir
		if files, limits, err = provenLog(mem); err != nil {
			return "", err
		}
	} else {
		names, err := mem.List(dir)
		if err != nil {
			return "", err
		}
		for _, name := range names {
			path := mem.PathJoin(dir, name)
			if info, err := mem.Stat(path); err == nil && !info.IsDir() && name != "LOCK" {
				files = append(files, path)
			}
		}
	}
	if len(files) == 0 {
		return "", nil
	}
	path := files[r.IntN(len(files))]
	info, err := mem.Stat(path)
	if err != nil {
		return "", err
	}
	size := info.Size()
	limit, limited := limits[path]
	if limited {
		size = min(size, limit)
	}
	if size == 0 || r.IntN(3) == 0 && !limited {
		if err := mem.Remove(path); err != nil {
			return "", err
		}
		return "lost " + path, syncDir(mem, dir)
	}
	f, err := mem.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return "", err
	}
	defer f.Close()
	at, b := r.Int64N(size), make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return "", err
	}
	b[0] ^= 1 << r.IntN(8)
	if _, err := f.WriteAt(b, at); err != nil {
		return "", err
	}
	return fmt.Sprintf("flipped a bit at %d of %s", at, path), f.Sync()
}

// cut makes a log as it would be after a start that took damage to a group for a write that a crash had
// interrupted: it ends there.
func cut(mem *vfs.MemFS, r *rand.Rand) (what string, err error) {
	segments, err := inspect(mem)
	if err != nil {
		return "", err
	}
	var long []int // segments of which something is left
	for i, s := range segments {
		if len(s.groups) > 1 {
			long = append(long, i)
		}
	}
	if len(long) == 0 {
		return "", nil
	}
	which := long[r.IntN(len(long))]
	s := segments[which]
	at := s.groups[1+r.IntN(len(s.groups)-1)]
	f, err := mem.Open(s.path)
	if err != nil {
		return "", err
	}
	kept := make([]byte, at)
	_, err = f.ReadAt(kept, 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	if f, err = mem.Create(s.path, vfs.WriteCategoryUnspecified); err != nil {
		return "", err
	}
	_, err = f.Write(kept)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", err
	}
	for _, later := range segments[which+1:] {
		if err := mem.Remove(later.path); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("cut %s at %d", s.path, at), syncDir(mem, logDir)
}

func syncDir(mem *vfs.MemFS, dir string) error {
	d, err := mem.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// segment is a file of the log.
type segment struct {
	path   string
	groups []int64 // where they begin
}

// inspect lists the segments of the log, the oldest first.
func inspect(mem *vfs.MemFS) (segments []segment, err error) {
	var text bytes.Buffer
	if err := raftlog.Inspect(logDir, mem, &text); err != nil {
		return nil, err
	}
	for line, err := text.ReadString('\n'); err != io.EOF; line, err = text.ReadString('\n') {
		at := int64(0)
		if strings.HasPrefix(line, "segment-") && strings.Contains(line, "first-group=") {
			segments = append(segments, segment{path: mem.PathJoin(logDir, strings.Fields(line)[0])})
		} else if n, _ := fmt.Sscanf(line, "  %d: group", &at); n == 1 && len(segments) > 0 {
			s := &segments[len(segments)-1]
			s.groups = append(s.groups, at)
		}
	}
	return segments, nil
}

// provenLog are the files of the log that may be damaged, and of some how many
// bytes from the start: those that something after them proves durable.
func provenLog(mem *vfs.MemFS) (files []string, limits map[string]int64, err error) {
	segments, err := inspect(mem)
	if err != nil {
		return nil, nil, err
	}
	// The last group is proven by nothing, and the header of its segment by it alone
	// if it is the only one there.
	for len(segments) > 0 && len(segments[len(segments)-1].groups) < 2 {
		segments = segments[:len(segments)-1]
	}
	limits = map[string]int64{}
	for i, s := range segments {
		files = append(files, s.path)
		if i == len(segments)-1 {
			limits[s.path] = s.groups[len(s.groups)-1]
		}
	}
	return append(files, mem.PathJoin(logDir, "META")), limits, nil
}

// harm crashes a member and damages its disk, if the cluster can do without it and
// no other member is damaged.
func (w *world) harm(l *life, r *rand.Rand, percent int) {
	voters := 0
	for _, x := range l.machine.Members() {
		m := w.member(x.ID)
		if m == nil || m.life() == nil || m.isDamaged() {
			return
		}
		if !x.IsLearner {
			voters++
		}
	}
	if voters < 3 {
		return
	}
	m := l.m
	m.crash(l, percent)
	m.mu.Lock()
	if m.now == nil && !m.begins && !m.removed {
		what, err := damage(m.mem, r, m.w.o.mutation)
		if err != nil {
			w.violation(noStart, "damage to member %d: %v", m.id, err)
		}
		if what != "" {
			w.tracef("  member %d: %s", m.id, what)
			w.count("damaged disks")
			m.damaged = w.o.mutation != cutDamage // such a log is whole, as far as anybody can see
		}
	}
	m.mu.Unlock()
	w.restartLater(m)
}

func (m *member) isDamaged() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.damaged
}

// refuse notes that a damaged member has said so and stopped. It is not started again.
func (m *member) refuse(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.refuses {
		m.refuses, m.removed = true, true
		m.w.tracef("member %d is damaged and stops: %v", m.id, err)
		m.w.count("damaged members that stopped")
	}
}

func (m *member) hasRefused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refuses
}

// replaceDamaged removes members that have stopped because of damage, as their operator would. It
// reports whether there was one.
func (w *world) replaceDamaged(ctx context.Context, l *life) bool {
	for _, x := range l.machine.Members() {
		if m := w.member(x.ID); m == nil || !m.hasRefused() {
			continue
		}
		result, err := l.replica.ProposeChange(ctx, &command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: x.ID, Member: command.Member{ID: x.ID}})
		w.tracef("removing the damaged member %d: %v", x.ID, errors.Join(err, result.Err))
		if err == nil && result.Err == nil {
			w.count("damaged members removed")
		}
		return true
	}
	return false
}
