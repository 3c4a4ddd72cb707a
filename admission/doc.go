// Package admission decides who may enter: a proposal is let in, or refused at
// once with ErrTooManyRequests, before it costs anything.
//
// # Why
//
// etcd refuses when more than 5,000 committed entries wait to be applied. A count knows nothing of
// size (5,000 entries of 1 MB are 5 GB) nor of speed (5,000 small puts are 50 ms of work), so it
// refuses a healthy member and lets a sick one drown. The gate looks at three things instead:
//
//   - bytes in flight: proposals that entered here and have no result yet,
//   - apply backlog in bytes: committed and not yet applied on this member, whoever proposed it,
//   - apply backlog in time: how long the oldest such entry has waited. A
//     request that enters behind a backlog older than its own timeout can only
//     time out; refusing it early is kinder to it and to those behind it.
//
// # Promises
//
// Enter costs two atomic operations and reads no clock. A single request always fits when nothing
// else is in flight, whatever its size. Priority requests (lease revocations, alarms, what the
// member proposes for itself) have twice the room, so that a flood of writes cannot keep leases
// from expiring.
//
// Turns is the other part: what costs a processor much, a password's hash say,
// is done by a few at a time, and those who wait are let in client by client.
//
// # Goroutines
//
// Take may be called from any goroutine. Enter and Leave may be called from any goroutine, Observe
// from one: it is the sampler's, every 100 ms or so. Between two samples the verdict about the
// backlog does not change, so the gate may be one sample late both ways.
package admission
