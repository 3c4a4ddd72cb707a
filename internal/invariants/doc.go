// Package invariants is for assertions that are too expensive in production: a build with the tag
// invariants has them, any other leaves them out, code and fields. They compare what is kept twice:
// counts with the keys that they count, an index with its order, memory with what is stored. Those
// of a package are in PACKAGE/invariants.go; each is checked where the state has just changed, and
// calls Broken.
//
//	go test -tags invariants ./mvcc        one package's tests with its asserts
//	make invariants                        all that have some, and a short simulation
//
// Each needs, in PACKAGE/invariants_test.go under the tag, a test that breaks it on purpose: an
// assertion that cannot fail is a defect.
//
// # Files
//
//	on.go      the build with the tag
//	off.go     the build without
//	broken.go  the panic, and how tests see it
package invariants
