package budget

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Least is the smallest budget, in bytes: a member with less could not keep what it is working on.
const Least = 128 << 20

// Size is what --memory-budget says. The zero value is the default: see Of.
type Size struct {
	Bytes   int64 // 0: a percentage
	Percent int   // of what there is, 1 to 100; 0: Bytes, or the default
}

// ParseSize reads a number of bytes, with or without a unit of 1024 (KiB, MiB, GiB, TiB), or a
// percentage of what there is. Empty is the default.
func ParseSize(text string) (Size, error) {
	if text == "" {
		return Size{}, nil
	}
	form := errors.New("want bytes as 536870912, 512MiB or 2GiB, or a share of the memory there is as 50%")
	if number, ok := strings.CutSuffix(text, "%"); ok {
		n, err := strconv.Atoi(number)
		if err != nil {
			return Size{}, form
		}
		if n < 1 || n > 100 {
			return Size{}, errors.New("a percentage must be between 1% and 100%")
		}
		return Size{Percent: n}, nil
	}
	number, unit := text, int64(1)
	for i, suffix := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if cut, ok := strings.CutSuffix(text, suffix); ok {
			number, unit = cut, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && n > math.MaxInt64/unit:
		return Size{}, errors.New("more bytes than there can be")
	case err != nil:
		return Size{}, form
	case n*unit < Least:
		return Size{}, fmt.Errorf("must be at least %dMiB", Least>>20)
	}
	return Size{Bytes: n * unit}, nil
}

const (
	// cgroupPercent of a cgroup's limit are the default: the rest is for the kernel's own (sockets,
	// page tables), which count there too.
	cgroupPercent = 75
	// machinePercent of a machine's memory are: other programs run there, and the page cache serves
	// the store.
	machinePercent = 50
)

// Of is the budget in bytes, with what there is. It is never less than Least.
func (s Size) Of(l Limit) int64 {
	switch {
	case s.Bytes > 0:
		return s.Bytes
	case s.Percent > 0:
		return max(l.Bytes/100*int64(s.Percent), Least)
	case l.Source == Cgroup:
		return max(l.Bytes/100*cgroupPercent, Least)
	case l.Source == GoMemLimit: // somebody has left room beside it already
		return max(l.Bytes, Least)
	}
	return max(l.Bytes/100*machinePercent, Least)
}
