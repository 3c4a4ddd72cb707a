package config

import (
	"errors"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

// ParseURLs reads a comma-separated list of URLs to listen on or to advertise: http, https, unix or
// unixs. The result is sorted and has each URL once.
func ParseURLs(list string) ([]url.URL, error) {
	if list == "" {
		return nil, nil
	}
	urls, err := types.NewURLs(strings.Split(list, ","))
	if err != nil {
		return nil, err
	}
	return slices.CompactFunc(urls, func(a, b url.URL) bool { return a.String() == b.String() }), nil
}

// urlsValue is a flag of URLs; an empty one changes nothing, as in etcd.
type urlsValue struct{ urls *[]url.URL }

func (v urlsValue) Set(s string) error {
	if s == "" {
		return nil
	}
	urls, err := ParseURLs(s)
	if err == nil {
		*v.urls = urls
	}
	return err
}

func (v urlsValue) String() string {
	if v.urls == nil {
		return ""
	}
	return JoinURLs(*v.urls)
}

// listValue is a flag of strings, sorted, each once.
type listValue struct{ list *[]string }

func (v listValue) Set(s string) error {
	list := strings.Split(s, ",")
	slices.Sort(list)
	*v.list = slices.Compact(list)
	return nil
}

func (v listValue) String() string {
	if v.list == nil {
		return ""
	}
	return strings.Join(*v.list, ",")
}

// choiceValue is a flag with few values.
type choiceValue struct {
	value   *string
	choices []string
}

func (v choiceValue) Set(s string) error {
	if !slices.Contains(v.choices, s) {
		return errors.New("invalid value")
	}
	*v.value = s
	return nil
}

func (v choiceValue) String() string {
	if v.value == nil {
		return ""
	}
	return *v.value
}

// uint32Value is a flag of 32 bits.
type uint32Value struct{ value *uint32 }

func (v uint32Value) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	if err == nil {
		*v.value = uint32(n)
	}
	return err
}

func (v uint32Value) String() string {
	if v.value == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*v.value), 10)
}

// millisecondsValue is a duration that is given as a number of milliseconds.
type millisecondsValue struct{ value *time.Duration }

func (v millisecondsValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return errors.New("value out of range")
	case err != nil:
		return errors.New("parse error")
	}
	*v.value = time.Duration(min(n, uint64(math.MaxInt64/time.Millisecond))) * time.Millisecond
	return nil
}

func (v millisecondsValue) String() string {
	if v.value == nil {
		return ""
	}
	return strconv.FormatInt(v.value.Milliseconds(), 10)
}
