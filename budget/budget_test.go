package budget

import (
	"math"
	"strings"
	"testing"
	"testing/fstest"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{
		"": {}, "134217728": {Bytes: 128 << 20}, "128MiB": {Bytes: 128 << 20}, "2GiB": {Bytes: 2 << 30}, "131072KiB": {Bytes: 128 << 20},
		"1TiB": {Bytes: 1 << 40}, "50%": {Percent: 50}, "1%": {Percent: 1}, "100%": {Percent: 100},
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"banana": "want bytes as", "512MB": "want bytes as", "1.5GiB": "want bytes as", "x%": "want bytes as", "GiB": "want bytes as", " 512MiB": "want bytes as",
		"127MiB": "at least 128MiB", "0": "at least 128MiB", "-1": "at least 128MiB", "0%": "between 1% and 100%", "101%": "between 1% and 100%",
		"9223372036854775808": "more bytes", "9999999999GiB": "more bytes",
	} {
		if got, err := ParseSize(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want an error with %q", text, got, err, want)
		}
	}
}

func TestSizeOf(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		size  Size
		there Limit
		want  int64
	}{
		{Size{}, Limit{100 * gib, Machine}, 50 * gib},
		{Size{}, Limit{100 * gib, Unknown}, 50 * gib},
		{Size{}, Limit{100 * gib, Cgroup}, 75 * gib},
		{Size{}, Limit{2 * gib, GoMemLimit}, 2 * gib},
		{Size{Percent: 10}, Limit{100 * gib, Cgroup}, 10 * gib},
		{Size{Bytes: gib}, Limit{100, Machine}, gib},
		{Size{}, Limit{1 << 20, Cgroup}, Least},
		{Size{Percent: 1}, Limit{gib, Machine}, Least},
	} {
		// Percentages are of hundredths in whole bytes.
		if got := c.size.Of(c.there); got > c.want || got < c.want-100 {
			t.Errorf("%+v of %+v: %d, want %d", c.size, c.there, got, c.want)
		}
	}
}

func TestFind(t *testing.T) {
	const (
		meminfo = "MemTotal:       24683920 kB\nMemFree:        100 kB\n"
		machine = 24683920 << 10
		mounts2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
		mounts1 = "29 25 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n" +
			"35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n" +
			"36 31 0:33 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n" +
			"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
	)
	none := "9223372036854771712\n"
	for _, c := range []struct {
		name    string
		files   map[string]string
		goLimit int64
		want    Limit
	}{
		{"nothing to read", nil, math.MaxInt64, Limit{8 << 30, Unknown}},
		{"nothing to read but GOMEMLIMIT", nil, 1 << 30, Limit{1 << 30, GoMemLimit}},
		{"a machine", map[string]string{"proc/meminfo": meminfo}, math.MaxInt64, Limit{machine, Machine}},
		{"version 2", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/system.slice/belay.service\n", "proc/self/mountinfo": mounts2,
			"sys/fs/cgroup/system.slice/belay.service/memory.max": "536870912\n", "sys/fs/cgroup/system.slice/memory.max": "max\n",
		}, math.MaxInt64, Limit{512 << 20, Cgroup}},
		{"version 2, the limit is further up", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": mounts2,
			"sys/fs/cgroup/a/b/memory.max": "1073741824\n", "sys/fs/cgroup/a/memory.max": "536870912\n",
		}, math.MaxInt64, Limit{512 << 20, Cgroup}},
		{"version 2, a namespace of its own", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mounts2, "sys/fs/cgroup/memory.max": "536870912\n",
		}, math.MaxInt64, Limit{512 << 20, Cgroup}},
		{"version 2, without a limit", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": mounts2, "sys/fs/cgroup/a/memory.max": "max\n",
		}, math.MaxInt64, Limit{machine, Machine}},
		{"version 1", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "9:name=systemd:/\n4:memory:/x/y\n1:cpu,cpuacct:/z\n0::/\n", "proc/self/mountinfo": mounts1,
			"sys/fs/cgroup/memory/x/y/memory.limit_in_bytes": "268435456\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": none, "sys/fs/cgroup/memory/memory.limit_in_bytes": none,
		}, math.MaxInt64, Limit{256 << 20, Cgroup}},
		{"version 1, a container without a namespace of cgroups", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/docker/abc\n",
			"proc/self/mountinfo":                        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n",
		}, math.MaxInt64, Limit{256 << 20, Cgroup}},
		{"version 1, without a limit", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/\n", "proc/self/mountinfo": mounts1, "sys/fs/cgroup/memory/memory.limit_in_bytes": none,
		}, math.MaxInt64, Limit{machine, Machine}},
		{"a cgroup larger than the machine", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mounts2, "sys/fs/cgroup/memory.max": "99999999999999\n",
		}, math.MaxInt64, Limit{machine, Machine}},
		{"GOMEMLIMIT below the cgroup", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mounts2, "sys/fs/cgroup/memory.max": "536870912\n",
		}, 300 << 20, Limit{300 << 20, GoMemLimit}},
		{"files that make no sense", map[string]string{
			"proc/meminfo": "MemTotal: many kB\n", "proc/self/cgroup": "x\n0::\n", "proc/self/mountinfo": "- cgroup2\n1 2 3 - cgroup2\n", "sys/fs/cgroup/memory.max": "-5\n",
		}, math.MaxInt64, Limit{8 << 30, Unknown}},
	} {
		root := fstest.MapFS{}
		for name, text := range c.files {
			root[name] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := Find(root, c.goLimit); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestDivide: the shares are all taken out of the budget, for every size.
func TestDivide(t *testing.T) {
	sum := int64(0)
	for _, s := range shares() {
		if !s.within {
			sum += s.of * s.times
		}
	}
	if sum != whole {
		t.Errorf("the shares add up to %d parts of %d", sum, whole)
	}
	for bytes := int64(Least); bytes < 1<<45; bytes += bytes/3 + 12345 {
		b := Divide(bytes, Limit{})
		if taken := b.Taken(); taken > bytes || taken < bytes/2 && bytes < 1<<30 {
			t.Errorf("of %d bytes the parts take %d", bytes, taken)
		}
		for _, p := range b.Table() {
			if p.Bytes <= 0 {
				t.Errorf("of %d bytes %s has %d", bytes, p.Name, p.Bytes)
			}
		}
		if heap := b.GoHeap(); heap > bytes || heap < bytes/2 {
			t.Errorf("of %d bytes Go's heap may take %d", bytes, heap)
		}
		if b.Parts.Proposals < 1536<<10 || b.Parts.Log < 16<<20 {
			t.Errorf("of %d bytes a request of the largest size finds %+v", bytes, b.Parts)
		}
	}
}

// TestDivideOnLargeMachine: with memory to spare every part has the bound that it had before.
func TestDivideOnLargeMachine(t *testing.T) {
	got, const64 := Divide(64<<30, Limit{}).Parts, int64(math.MaxInt32)
	want := Parts{
		Blocks: 128 << 20, HotKeys: 64 << 20, ExistsFilter: 32 << 20, MemTable: 32 << 20, LogKept: 32 << 20, Log: 512 << 20, Proposals: 1 << 30,
		Answers: 4 << 30, Answer: const64, Watches: 1 << 30, Recent: 8 << 20, Backlog: 64 << 20, Receiving: 512 << 20, Garbage: 192 << 20, Process: 256 << 20,
	}
	if got != want {
		t.Errorf("divided into\n%+v, want\n%+v", got, want)
	}
	if b := Divide(64<<30, Limit{}); b.LogInMemory() != 256<<20 || (Budget{}).LogInMemory() != 0 {
		t.Errorf("%d bytes of the log stay in memory, without a budget %d", b.LogInMemory(), (Budget{}).LogInMemory())
	}
}
