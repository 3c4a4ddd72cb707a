// Package check tests Belay's promises from the outside: it starts real processes and talks to them
// as any client would.
//
// The checks, each in a file of its own:
//
//	differential_test.go  the same requests to Belay and to etcd; equal answers
//	three_test.go         the same on three members, with kills and stops between requests (make three)
//	kill_test.go          kill -9 under load; nothing acknowledged is lost
//	members_test.go       members replaced under load, and one that lags for long
//	lifecycle_test.go     members come, go, are lost and found; beside etcd
//	linear_test.go        the histories of those runs, judged by porcupine
//	badinput_test.go      wrong flags, foreign or damaged data, full disks
//	clients_test.go       etcdctl, etcdutl and clientv3's recipes
//	auth_stream_test.go   requests by many users, while their rights change, to Belay and to etcd
//	auth_test.go          the ways around etcd's authentication that were published
//	auth_tls_test.go      users by certificate, and JWT
//	auth_cluster_test.go  users over restarts, elections, snapshots
//	auth_ctl_test.go      etcdctl and belay ctl: auth, user, role
//	corrupt_test.go       a member whose data was altered is found and named
//	corrupt_bytes_test.go  one byte of a stored file is altered, in one of three and in a lone member
//	logs_test.go          one day of Belay and of etcd: the same lines and metrics
//	reports_*_test.go     what users of etcd reported, and odd requests, told to both (make reports)
//	soak_test.go          an hour of all kinds of calls, with kills, stops and new certificates
//	prometheus_*_test.go  the community's alerts on the real Prometheus
//
// A check that cannot fail is worthless, so most of them can also be pointed at etcd, or at a side
// that is made to be wrong:
//
//	BELAY_CHECK_KIND=etcd     run the checks against etcd instead of Belay
//	BELAY_CHECK_SEED=n        repeat a run of the random checks
//	BELAY_CHECK_REQUESTS=n    length of the differential stream (3000)
//	BELAY_AUTH_REQUESTS=n     length of the stream of many users (2000; half with JWT)
//	BELAY_CHECK_TRACE=1       print every differential request and its answer
//	BELAY_KILL_ROUNDS=n       rounds of kill -9 (6; the full proof is 50)
//	BELAY_LAG_ENTRIES=n, BELAY_LAG_VALUE_BYTES=n  how far a member lags (3000, 16384; a paused one must need a snapshot beyond 192 MiB)
//	BELAY_CORRUPT_ROUNDS=n    kills of a healthy cluster under corruption checks (6)
//	BELAY_WEBVIEW=dir         look at the web view in Chromium, and write its pictures there
//	BELAY_REPORTS=1           tell the stories of reports_*_test.go to both, some ten minutes
//	BELAY_REPORTS_DIR=dir     write there what either answered
//	BELAY_SOAK=1h             how long TestSoak takes; it runs only with this
//	BELAY_BIN=path            a belay binary to check, instead of building one
//	BELAY_ETCD, BELAY_ETCDCTL, BELAY_ETCDUTL   etcd's programs, instead of building them
//
// Package proof/cluster starts and stops the processes; proof/fuzzrpc sends random messages to
// every method; proof/abuse attacks a member and watches its light clients. Nothing outside the
// tests imports this package.
package check
