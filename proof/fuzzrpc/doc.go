// Package fuzzrpc sends random messages to every method of every service of real members, and
// checks what must be true whatever a client sends.
//
//	go test -v ./proof/fuzzrpc                       some 10 s
//	make fuzz-rpc FUZZTIME=1h                        as long as one likes
//	BELAY_FUZZ_SEED=n go test -v ./proof/fuzzrpc     the messages of that seed again
//
// The methods and their messages are taken from the descriptors in the protobuf registry, so that a
// new method or field is fuzzed without a change here. A message is valid by its descriptor, with
// interesting values (message_test.go), or such a message broken: cut off, bits flipped, texts that
// are not UTF-8, unknown fields. It is sent by gRPC or as JSON through the gateway, without a user,
// by a user with some rights, or by root; users are on in every second round. A request that would
// rightly be obeyed and end the run, such as the removal of a member or of the last root, is not
// sent by a user who may make it (obeyed in message_test.go); the others send it.
//
// What must hold:
//
//   - the processes live, and their logs report no panic;
//   - every answer has a known code, and no text with internals of the program;
//   - what a call has taken is released: after a round no call runs any more and its goroutines are
//     gone;
//   - memory stays under a bound;
//   - a key that only this test writes has the right history, by revisions, versions and a watch;
//   - the three members have the same content at the end, also after a restart.
//
// The random numbers of a worker follow from the seed. What the members do with concurrent messages
// does not, so a seed repeats the messages, not the run; the last messages of each worker are
// printed when something is wrong.
package fuzzrpc
