// Package lint holds the rules about Belay's source that a machine can check, as Go tests: which
// package may import which (floors_test.go), that the code is formatted and that go vet and
// staticcheck have nothing to say (style_test.go), and what must never enter git (repo_test.go).
//
// The module in the folder staticcheck pins that tool and nothing else, so
// that its dependencies stay out of Belay's own go.mod.
//
// BELAY_LINT_PACKAGES=./raftlog/... limits vet and staticcheck to some packages.
package lint
