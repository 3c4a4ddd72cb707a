package invariants

import "fmt"

// Broken panics: an invariant of package pkg does not hold. In a member the applier turns it into a
// stop with this text.
func Broken(pkg, format string, args ...any) {
	panic(fmt.Sprintf("invariant of %s broken: %s", pkg, fmt.Sprintf(format, args...)))
}

// Caught is the text with which f panics; "" if it does not. It is for tests that break an
// invariant on purpose.
func Caught(f func()) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text = fmt.Sprint(p)
		}
	}()
	f()
	return ""
}
