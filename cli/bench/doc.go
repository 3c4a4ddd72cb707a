// Package bench is `belay bench`: etcd's benchmark tool, with its sub-commands, flags and output, and
// what it lacks.
//
// A sub-command says what one client does (put.go, read.go, txn.go, stm.go, lease.go, watch.go,
// watchget.go, latency.go, mvcc.go, mix.go); package load does it with many clients and counts.
// run.go does it as often as the flags say, for each size of values (sizes.go) and each side, and
// costs.go reads what the servers spent meanwhile. What was counted is printed as etcd's tool prints
// it, and below that with the high percentiles and the costs (text.go), compared (versus.go), as JSON
// (json.go), for perfdash (perfdash.go), and drawn (report.go). Nothing ends in a panic: a request
// that fails is counted under the text of its error.
//
// Requests travel through clientv3's connections, so that TLS, users and the choice of a member are
// those of every other client; what is timed passes them encoded (package load), so that the client
// costs little beside the servers on the same machine.
//
// There is no state in package variables: each command line has its own bench.
//
// Sources for what must be equal: etcd's tools/benchmark and pkg/report.
package bench
