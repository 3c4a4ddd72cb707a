package disk

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
)

func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	r, err := Measure(t.Context(), Options{Dir: dir, Block: 8000, Bytes: 400_000, For: time.Minute})
	if err != nil || r.Writes != 50 || r.IOPS <= 0 || r.P50 > r.P99 || r.P99 > r.Max || r.Mean <= 0 {
		t.Errorf("%+v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := Measure(ctx, Options{Dir: dir, Block: 8000, Bytes: 400_000, For: time.Minute}); err != nil || r.Writes != 0 {
		t.Errorf("interrupted: %+v, %v", r, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, o := range []Options{{Dir: filepath.Join(dir, "none"), Block: 1, Bytes: 1, For: 1}, {Dir: dir, Block: 10, Bytes: 5, For: 1}, {Dir: dir}} {
		if _, err := Measure(t.Context(), o); err == nil {
			t.Errorf("%+v is measured", o)
		}
	}
}

func TestMember(t *testing.T) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "member", "wal")
	if err := os.MkdirAll(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{dir, inside} {
		if m := Member(at); m != dir {
			t.Errorf("%s: member in %q", at, m)
		}
	}
}

func TestJudge(t *testing.T) {
	of := func(n int, each time.Duration, slow int, slowly time.Duration) *Result {
		r := &Result{Block: 8000}
		var busy time.Duration
		for i := range n {
			d := each
			if i < slow {
				d = slowly
			}
			r.syncs, busy = append(r.syncs, d), busy+d
		}
		r.Took = busy
		r.sum(busy)
		return r
	}
	for _, tc := range []struct {
		r    *Result
		id   string
		code int
	}{
		{of(1000, time.Millisecond, 0, 0), "disk-fast", report.CodeGood},
		{of(1000, 4*time.Millisecond, 0, 0), "disk-modest", report.CodeWarning},
		{of(1000, time.Millisecond, 20, 50*time.Millisecond), "disk-uneven", report.CodeWarning},
		{of(100, 50*time.Millisecond, 0, 0), "disk-too-slow", report.CodeCritical},
		{of(3, time.Second, 0, 0), "disk-too-few", report.CodeCritical},
		{of(0, 0, 0, 0), "disk-too-few", report.CodeCritical},
	} {
		rep := Judge(tc.r, time.Now(), "")
		if len(rep.Findings) != 1 || rep.Findings[0].ID != tc.id || rep.ExitCode() != tc.code {
			t.Errorf("want %s: %+v", tc.id, rep.Findings)
		}
	}
}

// TestLikeFio measures the same disk with fio, where it is there, and wants the same order of size:
// how near the two are on a quiet machine is told in docs/doctor.md. fio gets a new file each time, as
// Measure has: in one that is there already nothing is allocated, and a sync takes about half as long.
func TestLikeFio(t *testing.T) {
	fio, err := exec.LookPath("fio")
	if err != nil || testing.Short() {
		t.Skip("needs fio")
	}
	dir := t.TempDir()
	var ours, theirs []float64
	for range 3 {
		r, err := Measure(t.Context(), Options{Dir: dir, Block: 8000, Bytes: 4_000_000, For: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, r.P50)
		out, err := exec.CommandContext(t.Context(), fio, "--name=x", "--unlink=1", "--directory="+dir, "--rw=write", "--ioengine=sync", "--fdatasync=1", "--bs=8000", "--size=4000000", "--output-format=json").Output()
		if err != nil {
			t.Fatal(err)
		}
		var f struct {
			Jobs []struct {
				Sync struct {
					Lat struct {
						Percentile map[string]float64 `json:"percentile"`
					} `json:"lat_ns"`
				} `json:"sync"`
			} `json:"jobs"`
		}
		if err := json.Unmarshal(out, &f); err != nil || len(f.Jobs) != 1 {
			t.Fatalf("%v\n%s", err, out)
		}
		theirs = append(theirs, f.Jobs[0].Sync.Lat.Percentile["50.000000"]/1e9)
	}
	t.Logf("fdatasync p50, three times each: ours %v, fio's %v", ours, theirs)
	best := func(all []float64) float64 {
		m := math.Inf(1)
		for _, v := range all {
			m = min(m, v)
		}
		return m
	}
	if ratio := best(ours) / best(theirs); ratio < 0.2 || ratio > 5 {
		t.Errorf("the best p50 is %.2f of fio's", ratio)
	}
}
