package show

import "testing"

func TestLogBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 9: "9 B", 999: "999 B", 1000: "1.0 kB", 20480: "20 kB", 2 << 30: "2.1 GB", 123456789: "124 MB", -4096: "-4.1 kB",
		1000000: "1.0 MB", 1000000000: "1.0 GB", 10500: "10 kB", 9960: "10 kB", 1000000000000: "1.0 TB",
	} {
		if got := LogBytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
