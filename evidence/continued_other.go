//go:build !unix

package evidence

import "os"

func notifyContinued(chan os.Signal) (stop func()) { return func() {} }
