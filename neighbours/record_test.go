package neighbours

import (
	"bytes"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"
)

func sampleAt(second int, writers ...Writer) Sample {
	return Sample{At: time.Unix(1_800_000_000+int64(second), 0).UTC(), Took: time.Second, Disk: Disk{Bytes: 1000, Flushes: 2}, Writers: writers}
}

func TestRecord(t *testing.T) {
	var file bytes.Buffer
	var all []Sample
	for i := range 20 {
		s := sampleAt(i, Writer{Name: "prometheus", Group: Group{"unit", "prometheus.service"}, PID: 7, Bytes: int64(i), From: FromSyscalls})
		s.Fsync = Fsync{Upper: []float64{0.001, 0}, Count: []float64{float64(i + 1), 1}, Sum: 0.5}
		all = append(all, s)
		if err := (Recorder{&file}).Add(s); err != nil {
			t.Fatal(err)
		}
	}
	read := func(text []byte) (got []Sample, skipped int) {
		skipped, err := Read(bytes.NewReader(text), time.Time{}, func(s Sample) { got = append(got, s) })
		if err != nil {
			t.Fatal(err)
		}
		return got, skipped
	}
	if got, skipped := read(file.Bytes()); skipped != 0 || !reflect.DeepEqual(got, all) {
		t.Fatalf("%d skipped, %v\nwant %v", skipped, got, all)
	}
	var late []Sample
	if _, err := Read(bytes.NewReader(file.Bytes()), all[14].At, func(s Sample) { late = append(late, s) }); err != nil || !reflect.DeepEqual(late, all[15:]) {
		t.Errorf("since: %v, %v", err, late)
	}

	// Killed at any point of a line, and started again, which begins a new line.
	lines := bytes.SplitAfter(file.Bytes(), []byte("\n"))
	before, torn := bytes.Join(lines[:10], nil), lines[10]
	for cut := 1; cut < len(torn)-1; cut++ {
		text := slices.Concat(before, torn[:cut], []byte("\n"), bytes.Join(lines[11:], nil))
		if got, skipped := read(text); skipped != 1 || len(got) != 19 {
			t.Fatalf("a line torn behind byte %d: %d samples, %d skipped", cut, len(got), skipped)
		}
	}
	// No changed bit goes unseen.
	for bit := range 8 * (len(torn) - 1) {
		changed := bytes.Clone(torn)
		changed[bit/8] ^= 1 << (bit % 8)
		if got, _ := read(changed); len(got) != 0 && !reflect.DeepEqual(got, all[10:11]) {
			t.Fatalf("bit %d changed: %v", bit, got)
		}
	}
	// What is no record at all, and longer than any line.
	if got, skipped := read(append(bytes.Repeat([]byte("x"), 3*maxRecordLine), append([]byte("\n"), lines[3]...)...)); skipped != 1 || len(got) != 1 {
		t.Errorf("behind a long line: %v, %d skipped", got, skipped)
	}
}

// TestLog holds that nothing is lost when samples become one, and that memory stays bounded.
func TestLog(t *testing.T) {
	l := Log{Limit: 16}
	const n = 1000
	for i := range n {
		s := sampleAt(i, Writer{Name: "w", Bytes: 3}, Writer{Name: "etcd", Own: true, Bytes: 1})
		s.Fsync = Fsync{Upper: []float64{0.001}, Count: []float64{2}}
		l.Add(s)
		if len(l.Samples()) > 16 {
			t.Fatalf("%d samples", len(l.Samples()))
		}
	}
	var sum Sample
	for i, s := range l.Samples() {
		if i > 0 && !s.Begin().Equal(l.Samples()[i-1].At) {
			t.Errorf("sample %d begins at %s, the one before ends at %s", i, s.Begin(), l.Samples()[i-1].At)
		}
		sum.Add(s)
	}
	if sum.Took != n*time.Second || sum.Disk.Bytes != n*1000 || sum.Fsync.Total() != 2*n || len(sum.Writers) != 2 || sum.Writers[0].Bytes != 3*n || sum.Writers[1].Bytes != n {
		t.Errorf("in all %+v", sum)
	}
}

// TestLargest holds that the member is kept among many, and that the largest are.
func TestLargest(t *testing.T) {
	var all []Writer
	for i := range 30 {
		all = append(all, Writer{Name: string(rune('a' + i)), Bytes: int64(100 + i)})
	}
	all = append(all, Writer{Name: "etcd", Own: true, Bytes: 1})
	got := merge(all)
	if len(got) != maxWriters+1 || got[0].Bytes != 129 || !got[len(got)-1].Own {
		t.Errorf("%v", got)
	}
}

func TestP99(t *testing.T) {
	for _, tc := range []struct {
		f    Fsync
		want float64
	}{
		{Fsync{}, math.NaN()},
		{Fsync{Upper: []float64{0.001, 0.256}, Count: []float64{99, 1}}, 0.001},
		{Fsync{Upper: []float64{0.001, 0.256}, Count: []float64{98, 2}}, 0.256},
		{Fsync{Upper: []float64{0.001, 0}, Count: []float64{1, 1}}, math.Inf(1)},
	} {
		if got := tc.f.P99(); got != tc.want && !(math.IsNaN(got) && math.IsNaN(tc.want)) {
			t.Errorf("%v: %v, want %v", tc.f, got, tc.want)
		}
	}
}

func TestGroups(t *testing.T) {
	id := "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, tc := range []struct{ path, want string }{
		{"/", ""},
		{"", ""},
		{"/system.slice/prometheus.service", "prometheus.service"},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/backup.service", "backup.service"},
		{"/user.slice/user-0.slice/session-3.scope", "session-3.scope"},
		{"/user.slice", ""},
		{"/docker/" + id, "container 0123456789ab"},
		{"/system.slice/docker-" + id + ".scope", "container 0123456789ab"},
		{"/machine.slice/libpod-" + id + ".scope/container", "container 0123456789ab"},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3f1f0a6b_7a2f_4f0a_9d3c_0123456789ab.slice/cri-containerd-" + id + ".scope", "pod 3f1f0a6b-7a2f-4f0a-9d3c-0123456789ab"},
		{"/kubepods/besteffort/pod3f1f0a6b-7a2f-4f0a-9d3c-0123456789ab/" + id, "pod 3f1f0a6b-7a2f-4f0a-9d3c-0123456789ab"},
		{"/kubepods.slice/kubepods-pod0123456789abcdef0123456789abcdef.slice/crio-" + id + ".scope", "pod 0123456789abcdef0123456789abcdef"},
		{"/mine/batch", "cgroup /mine/batch"},
	} {
		if got := groupOf(tc.path).String(); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.path, got, tc.want)
		}
	}
}
