//go:build !unix

package evidence

import "errors"

func mkfifo(string) error { return errors.ErrUnsupported }
