package peers

import (
	"encoding/binary"
	"fmt"
)

// What goes over a connection of PathRenewals: questions from the member that has opened it, to the
// leader, and answers from there, each a frame of a fixed size, big-endian. A frame whose number is
// zero, all else of which is zero too, asks and answers nothing: it says that its sender is there.
//
//	question   +-----------+-----------+---------------+
//	           | number  8 | lease   8 | patience, ms 4|
//	           +-----------+-----------+---------------+
//	answer     +-----------+-----------+---------------+
//	           | number  8 | outcome 1 | TTL, s       8|
//	           +-----------+-----------+---------------+
//
// The number is that of the question, chosen by who asks; answers come in any order. A frame that no
// member sends ends the connection: there is nothing behind it that could be trusted.

// A RenewalQuestion asks the leader to renew a lease.
type RenewalQuestion struct {
	Number   uint64 // not 0, and not that of another one on the connection that has no answer yet
	Lease    int64
	Patience uint32 // milliseconds for which the answer is waited for; not 0
}

// A RenewalAnswer is the answer to a RenewalQuestion.
type RenewalAnswer struct {
	Number  uint64 // not 0
	Outcome RenewalOutcome
	TTL     int64 // in seconds, of a lease that was renewed; else 0
}

// RenewalOutcome is what came of a question.
type RenewalOutcome byte

const (
	// RenewalDone: the lease has its full time again.
	RenewalDone RenewalOutcome = iota
	// RenewalNoLease: there is no such lease.
	RenewalNoLease
	// RenewalNotNow: who was asked does not lead, or cannot tell now, or is asked too much at once.
	// Another attempt may succeed.
	RenewalNotNow
	renewalOutcomes // their number
)

const (
	// RenewalQuestionBytes and RenewalAnswerBytes are the sizes of the frames.
	RenewalQuestionBytes = 8 + 8 + 4
	RenewalAnswerBytes   = 8 + 1 + 8
)

// AppendTo appends the question's frame; of the zero RenewalQuestion, the frame that asks nothing.
func (q RenewalQuestion) AppendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, q.Number)
	b = binary.BigEndian.AppendUint64(b, uint64(q.Lease))
	return binary.BigEndian.AppendUint32(b, q.Patience)
}

// ReadRenewalQuestion reads the frame that b begins with. REQUIRES: b has RenewalQuestionBytes.
func ReadRenewalQuestion(b []byte) (RenewalQuestion, error) {
	q := RenewalQuestion{Number: binary.BigEndian.Uint64(b), Lease: int64(binary.BigEndian.Uint64(b[8:])), Patience: binary.BigEndian.Uint32(b[16:])}
	if (q.Number == 0) != (q.Patience == 0) || q.Number == 0 && q.Lease != 0 {
		return RenewalQuestion{}, fmt.Errorf("a question that no member asks: number %d, lease %d, %d ms", q.Number, q.Lease, q.Patience)
	}
	return q, nil
}

// AppendTo appends the answer's frame; of the zero RenewalAnswer, the frame that answers nothing.
func (a RenewalAnswer) AppendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, a.Number)
	b = append(b, byte(a.Outcome))
	return binary.BigEndian.AppendUint64(b, uint64(a.TTL))
}

// ReadRenewalAnswer reads the frame that b begins with. REQUIRES: b has RenewalAnswerBytes.
func ReadRenewalAnswer(b []byte) (RenewalAnswer, error) {
	a := RenewalAnswer{Number: binary.BigEndian.Uint64(b), Outcome: RenewalOutcome(b[8]), TTL: int64(binary.BigEndian.Uint64(b[9:]))}
	if a.Outcome >= renewalOutcomes || a.TTL < 0 || a.Outcome != RenewalDone && a.TTL != 0 || a.Number == 0 && a != (RenewalAnswer{}) {
		return RenewalAnswer{}, fmt.Errorf("an answer that no member gives: number %d, outcome %d, TTL %d", a.Number, a.Outcome, a.TTL)
	}
	return a, nil
}
