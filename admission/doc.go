// Package admission decides which proposals a member accepts: one is let in, or refused at once
// with ErrTooManyRequests, before it costs anything.
//
// # Why
//
// etcd refuses when more than 5,000 committed entries wait to be applied. A count says nothing
// about size (5,000 entries of 1 MB are 5 GB) or time (5,000 small puts are 50 ms of work), so it
// blocks a healthy member and lets a struggling one drown. The gate looks at three things instead:
//
//   - bytes in flight: proposals that were let in here and have no result yet,
//   - apply backlog in bytes: committed and not yet applied on this member, whoever proposed it,
//   - apply backlog in time: how long the oldest such entry has waited. A request behind a backlog
//     older than its own timeout can only time out; refusing it early is better for it and for the
//     requests after it.
//
// # Promises
//
// Enter costs two atomic operations and reads no clock. A single request always fits when nothing
// else is in flight, whatever its size. Priority requests (lease revocations, alarms, what the
// member proposes for itself) may use twice as much, so that a flood of writes cannot keep leases
// from expiring.
//
// Turns is another part: work that is expensive for the CPU, such as hashing a password, is done
// by a few calls at a time, and clients take turns. Room does for memory what Turns does for the
// CPU: calls wait until what they will hold has room.
//
// # Goroutines
//
// Take, Enter and Leave, and the methods of Room, may be called from any goroutine, Observe from
// one: the sampler, every 100 ms or so. The verdict about the backlog does not change between two
// samples, so the gate may open and close one sample late.
package admission
