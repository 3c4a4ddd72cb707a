package bench

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// mostValue is the largest value that may be asked for, bytes. Servers refuse far smaller ones.
const mostValue = 1 << 30

// sizes is the flag --val-size: one number of bytes, as in etcd's tool, or several, each of which is
// measured. k and m are powers of 1,024.
type sizes []int

func valSizes(fs *pflag.FlagSet, value int) *sizes {
	s := &sizes{value}
	fs.Var(s, "val-size", "bytes of a value; several, as in 256,1k,100k,1m, are measured one after another")
	return s
}

// String is what Set takes.
func (s *sizes) String() string {
	var all []string
	for _, n := range *s {
		all = append(all, sizeText(n))
	}
	return strings.Join(all, ",")
}

// Type is that of etcd's flag, in the help.
func (s *sizes) Type() string { return "int" }

// Set reads the flag.
func (s *sizes) Set(text string) error {
	var all sizes
	for word := range strings.SplitSeq(text, ",") {
		n, err := parseSize(word)
		if err != nil {
			return err
		}
		all = append(all, n)
	}
	*s = all
	return nil
}

func parseSize(word string) (int, error) {
	digits, unit := strings.ToLower(strings.TrimSpace(word)), 1
	for suffix, factor := range map[string]int{"k": 1 << 10, "m": 1 << 20} {
		if d, ok := strings.CutSuffix(digits, suffix); ok {
			digits, unit = d, factor
			break
		}
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || n > mostValue/unit {
		return 0, fmt.Errorf("%q is no size: give bytes, or 1k, 100k, 1m (powers of 1,024), up to 1024m, comma separated", word)
	}
	return n * unit, nil
}

// sizeText is a size as the flag takes it.
func sizeText(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return strconv.Itoa(n>>20) + "m"
	case n >= 1<<10 && n%(1<<10) == 0:
		return strconv.Itoa(n>>10) + "k"
	}
	return strconv.Itoa(n)
}
