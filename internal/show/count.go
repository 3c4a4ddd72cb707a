package show

import "fmt"

// Count says how many there are of what has a plural in s: 1 lease, 2 leases.
func Count[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
