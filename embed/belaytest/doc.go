// Package belaytest has clusters of Belay for tests of programs that use one. Data and network are
// in memory, nothing is left behind, and faults are injected by a call:
//
//	func TestFailover(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			c := belaytest.Cluster(t, 3)
//			client := c.Client() // an etcd client
//			...
//			c.Kill(c.Leader())
//			time.Sleep(time.Hour) // takes seconds
//			...
//			c.CheckEqual()
//		})
//	}
//
// # Virtual time
//
// In a bubble of testing/synctest time goes on when every goroutine waits, and no faster than the
// members' ticks can be computed: an hour of three idle members takes some ten seconds of one CPU.
// Leases, timeouts, keepalives and elections follow it. In a bubble nothing may wait for the world
// outside: no sockets, and clients only from Client and ClientOf. Without one, all works as well, in
// real time.
//
// # What a fault is
//
// Kill is SIGKILL: what was written survives, since the system has it. PowerOff loses what was not
// synced. StallDisk lets no sync end and takes writes, FillDisk refuses what makes files longer. Cut
// lets nothing arrive and closes nothing. Faults of disk and network stay over restarts, until
// RepairDisk and Join.
//
// Clients reach every member that runs, whatever is cut between members. As with any cluster, a
// write whose answer was an error may have happened.
package belaytest
