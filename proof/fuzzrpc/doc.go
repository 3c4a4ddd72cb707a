// Package fuzzrpc sends random messages to every method of every service of real members, and holds
// the members to what must be true whatever a client sends.
//
//	go test -v ./proof/fuzzrpc                       some 10 s
//	make fuzz-rpc FUZZTIME=1h                        as long as one likes
//	BELAY_FUZZ_SEED=n go test -v ./proof/fuzzrpc     the messages of that seed again
//
// The methods and their messages are taken from the descriptors in the protobuf registry, so that a
// new method or field is fuzzed without a word here. A message is valid by its descriptor, of
// values that are interesting (message_test.go), or broken after that: cut off, bits turned over,
// texts that are no UTF-8, fields that nobody knows. It goes by gRPC or as JSON through the
// gateway, from nobody, from a user with some rights, from root; users are on in each second round.
// What would be right to obey and would end the run, such as the removal of a member or of the last
// root, is not sent by one who may (obeyed in message_test.go); the others send it.
//
// What must hold:
//
//   - the processes live, and their logs tell of no panic;
//   - every answer has a code that is known, and no text with the inside of the program in it;
//   - what a call has taken is given back: after a round no call is at work any
//     more and the goroutines have gone;
//   - memory stays under a bound;
//   - a key that only this test writes has the history that it was given, by
//     revisions, versions and a watch;
//   - the three members have the same content at the end, also after a restart.
//
// The random numbers of a worker follow from the seed. What the members do with
// messages that arrive at once does not, so a seed repeats the messages, not the run; the last
// messages of each worker are printed when something is wrong.
package fuzzrpc
