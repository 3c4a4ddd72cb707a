package neighbours

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestIOStat(t *testing.T) {
	const text = "254:0 rbytes=1 wbytes=4096 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=0 wbytes=7 rios=0 wios=1\n259:1 \n8:32 wbytes=100\n"
	for _, tc := range []struct {
		numbers []string
		want    int64
	}{{[]string{"254:0"}, 4096}, {[]string{"8:16", "8:32"}, 107}, {[]string{"8:1"}, 0}, {nil, 0}} {
		if got := ioStat(text, tc.numbers); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.numbers, got, tc.want)
		}
	}
}

// TestWritten has each source's weakness: sockets count in one, folios in the other.
func TestWritten(t *testing.T) {
	for _, tc := range []struct {
		name string
		grew counters
		want int64
		from From
	}{
		{"a proxy, which writes to sockets", counters{calls: 100, wchar: 1 << 30}, 0, FromSyscalls},
		{"a raft log, whose folios are dirtied again and again", counters{calls: 100, wchar: 1 << 20, dirtied: 15 << 20}, 1 << 20, FromSyscalls},
		{"a server that answers much and writes little", counters{calls: 100, wchar: 1 << 30, dirtied: 4096}, 4096, FromSyscalls},
		{"a mapping", counters{dirtied: 5 << 20}, 5 << 20, FromDirtied},
		{"nothing", counters{}, 0, FromSyscalls},
	} {
		if got, from := tc.grew.written(); got != tc.want || from != tc.from {
			t.Errorf("%s: %d by %s, want %d by %s", tc.name, got, from, tc.want, tc.from)
		}
	}
}

// writerEnv makes this test's binary a process that writes some MiB into a directory when it gets a
// byte on standard input, and answers with one.
const writerEnv = "BELAY_TEST_WRITER"

// TestMain is a writer if asked to be one.
func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		os.Exit(write(dir))
	}
	os.Exit(m.Run())
}

const burstBytes = 4 << 20

func write(dir string) int {
	one := make([]byte, 1)
	for {
		if n, _ := os.Stdin.Read(one); n == 0 {
			return 0
		}
		f, err := os.Create(filepath.Join(dir, "burst"))
		if err != nil {
			return 1
		}
		for range burstBytes >> 16 {
			if _, err := f.Write(make([]byte, 1<<16)); err != nil {
				return 1
			}
		}
		if _, err := os.Stdout.Write(one); err != nil {
			return 1
		}
		f.Close()
	}
}

// TestLook has a process that writes when it is told to, beside a collector that looks before and
// after: its bytes are its own, those of a child that has ended are its parent's, and a member's own
// writes are not a neighbour's.
func TestLook(t *testing.T) {
	dir := t.TempDir()
	target, err := MemberIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(target.Disks) == 0 {
		t.Skipf("%s is on no disk", dir)
	}
	// Under a name of its own: what other tests' binaries write at the same time is not its.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), fmt.Sprintf("writer-%d", os.Getpid()))
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), writerEnv+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the writer: %v", err)
		}
	}()
	burst := func() {
		one := []byte{1}
		if _, err := in.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(one); err != nil {
			t.Fatal(err)
		}
	}
	burst() // it runs
	if _, err := os.ReadFile("/proc/self/io"); err != nil {
		t.Skipf("the kernel does not count what processes write: %v", err)
	}
	c, err := New(target)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	look := func() Sample {
		now = now.Add(time.Second)
		s, ok, err := c.Look(now)
		if err != nil || !ok {
			t.Fatalf("%v, %v", ok, err)
		}
		return s
	}
	if _, ok, err := c.Look(now); ok || err != nil {
		t.Fatalf("the first look: %v, %v", ok, err)
	}
	of := func(s Sample, pid int) (w Writer) {
		for _, w := range s.Writers {
			if w.PID == pid {
				return w
			}
		}
		return w
	}
	burst()
	// With io.stat it is what the disk was given, which comes when the kernel writes it back.
	w := of(look(), cmd.Process.Pid)
	if w.From == FromSyscalls && (w.Bytes < burstBytes || w.Bytes > burstBytes+burstBytes/8 || w.Own) {
		t.Errorf("%d bytes written are seen as %+v", burstBytes, w)
	}
	if w := of(look(), cmd.Process.Pid); w.From == FromSyscalls && w.Bytes != 0 {
		t.Errorf("nothing written is seen as %+v", w)
	}
	c.target.PID = cmd.Process.Pid
	burst()
	if w := of(look(), cmd.Process.Pid); !w.Own || w.Elsewhere || w.Unplaced {
		t.Errorf("the member's own bytes are %+v", w)
	}
	if _, err := Member(cmd.Process.Pid); err == nil || errors.Is(err, os.ErrPermission) {
		t.Errorf("a process without a raft log is a member: %v", err)
	}
}

// TestReaped has a parent that waited for a child, which had waited for its own: what they had been
// seen to write before is in the parent's counters, too, and counts once.
func TestReaped(t *testing.T) {
	c := &Collector{processes: map[int]*process{
		10: {name: "sh", counters: counters{calls: 105, wchar: 1700, dirtied: 17000}, grew: counters{calls: 104, wchar: 1600, dirtied: 16000}},
		11: {name: "make", parent: 10, counters: counters{calls: 3, wchar: 500, dirtied: 5000}},
		12: {name: "ld", parent: 11, counters: counters{calls: 100, wchar: 1000, dirtied: 10000}},
	}}
	c.settle(map[int]bool{10: true})
	if got := c.processes[10].grew; len(c.processes) != 1 || got != (counters{1, 100, 1000}) {
		t.Errorf("%+v of %d processes", got, len(c.processes))
	}
}
