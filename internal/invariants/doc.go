// Package invariants has the asserts that cost too much for a member at work: a build with the tag invariants makes them,
// any other leaves them out, code and fields. They compare what is kept twice: counts with the keys that they count, an index
// with its order, memory with what is stored. Each stands in a file invariants.go of its package, is made where the state has
// just changed, and calls Broken.
//
//	go test -tags invariants ./mvcc        one package's tests with its asserts
//	make invariants                        all that have some, and a short simulation
//
// Whoever adds one also adds, in a file invariants_test.go under the tag, what breaks it on purpose: an assert that cannot fail
// is a defect.
//
// # Files
//
//	on.go      the build with the tag
//	off.go     the build without
//	broken.go  the panic, and how tests see it
package invariants
