// Package benchmark pins the version of etcd's benchmark tool that the test in
// the folder above builds and runs.
package benchmark
