package show

import (
	"fmt"
	"math"
)

// Bytes returns a size in powers of 1000 with two digits or more: 9 B, 1.5 kB, 20 kB, 2.1 GB. A
// negative size (a quota that is off) comes out as the unsigned number it is in etcdctl.
func Bytes(size int64) string {
	n := uint64(size)
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	if n < 10 {
		return fmt.Sprintf("%d B", n)
	}
	exponent := math.Floor(math.Log(float64(n)) / math.Log(1000))
	value := math.Floor(float64(n)/math.Pow(1000, exponent)*10+0.5) / 10
	if value < 10 {
		return fmt.Sprintf("%.1f %s", value, units[int(exponent)])
	}
	return fmt.Sprintf("%.0f %s", value, units[int(exponent)])
}

// LogBytes gives a size as etcd's log lines do: like Bytes, but a negative one has its sign.
func LogBytes(size int64) string {
	if size < 0 {
		return "-" + Bytes(-size)
	}
	return Bytes(size)
}
