//go:build !linux

package datadir

import "errors"

// exchange: there is no way to swap two names in one step that all other systems have.
func exchange(string, string) error { return errors.ErrUnsupported }
