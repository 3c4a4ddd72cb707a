//go:build !linux

package neighbours

import (
	"errors"
	"time"
)

// ErrSystem is why nothing can be seen on this system.
var ErrSystem = errors.New("who writes to a disk can be seen on Linux alone: it is read from /proc")

// A Collector is there on Linux alone.
type Collector struct{}

// New is ErrSystem.
func New(Target) (*Collector, error) { return nil, ErrSystem }

// Look is ErrSystem.
func (*Collector) Look(time.Time) (Sample, bool, error) { return Sample{}, false, ErrSystem }

// Disk is none.
func (*Collector) Disk() string { return "" }

// FindMembers is ErrSystem.
func FindMembers() ([]Target, error) { return nil, ErrSystem }

// Member is ErrSystem.
func Member(int) (Target, error) { return Target{}, ErrSystem }

// MemberIn is ErrSystem.
func MemberIn(string) (Target, error) { return Target{}, ErrSystem }

// Self is ErrSystem.
func Self(string) (Target, error) { return Target{}, ErrSystem }

// Ports are none.
func Ports(int) []string { return nil }
