package show

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	m := newMeter(&out, "snapshot", Bytes, func() time.Time { return now })
	m.Show(1, 1000) // at once: nothing
	for _, step := range []struct {
		done, total int64
		want        string
	}{
		{100e6, 1e9, "snapshot: 100 MB of 1.0 GB (10 %), 100 MB/s, 9s left"},
		{400e6, 1e9, "snapshot: 400 MB of 1.0 GB (40 %), 200 MB/s, 3s left"},
		{400e6, 0, "snapshot: 400 MB, 133 MB/s"},
		{1e9, 1e9, "snapshot: 1.0 GB of 1.0 GB (100 %), 250 MB/s"},
	} {
		out.Reset()
		now = now.Add(time.Second)
		m.Show(step.done, step.total)
		m.Show(step.done+1, step.total) // too soon
		if got := strings.Trim(out.String(), "\r\x1b[K"); got != step.want {
			t.Errorf("%q, want %q", got, step.want)
		}
	}
	out.Reset()
	m.End()
	if out.String() != "\r\x1b[K" {
		t.Errorf("the end is %q", out.String())
	}
}

func TestMeterIsForTerminals(t *testing.T) {
	var out bytes.Buffer
	m := NewMeter(&out, &out, "x", Bytes)
	m.Show(1, 2)
	m.End()
	if m != nil || out.Len() > 0 {
		t.Fatalf("%v wrote %q", m, out.String())
	}
}
