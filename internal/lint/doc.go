// Package lint checks, as Go tests, the rules about Belay's source that a machine can check: which
// package may import which (floors_test.go); formatting, go vet and staticcheck (style_test.go);
// that the pages and comments cite what exists (pages_test.go); who may read the wall clock
// (clock_test.go); that a nil logger is allowed wherever a logger is (loggers_test.go); that it
// builds on other systems (portable_test.go); and what must never enter git (repo_test.go,
// ignored_test.go).
//
// The module in the folder staticcheck pins that tool and nothing else, so
// that its dependencies stay out of Belay's own go.mod.
//
// BELAY_LINT_PACKAGES=./raftlog/... limits vet and staticcheck to some packages.
package lint
