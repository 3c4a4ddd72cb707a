package peers

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func FuzzRenewals(f *testing.F) {
	f.Add(RenewalQuestion{Number: 1, Lease: -7, Patience: 7000}.AppendTo(nil))
	f.Add(RenewalQuestion{}.AppendTo(nil))
	f.Add(RenewalAnswer{Number: 1 << 60, TTL: 100}.AppendTo(nil))
	f.Add(RenewalAnswer{Number: 3, Outcome: RenewalNotNow}.AppendTo(nil))
	f.Add(bytes.Repeat([]byte{0xff}, RenewalQuestionBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= RenewalQuestionBytes {
			if q, err := ReadRenewalQuestion(b); err == nil && !bytes.Equal(q.AppendTo(nil), b[:RenewalQuestionBytes]) {
				t.Errorf("%x reads as %+v", b, q)
			} else if err == nil && (q.Number == 0) != (q == RenewalQuestion{}) {
				t.Errorf("%x is taken: %+v", b, q)
			}
		}
		if len(b) >= RenewalAnswerBytes {
			if a, err := ReadRenewalAnswer(b); err == nil && !bytes.Equal(a.AppendTo(nil), b[:RenewalAnswerBytes]) {
				t.Errorf("%x reads as %+v", b, a)
			} else if err == nil && (a.Outcome > RenewalNotNow || a.TTL < 0 || a.TTL > 0 && (a.Outcome != RenewalDone || a.Number == 0)) {
				t.Errorf("%x is taken: %+v", b, a)
			}
		}
	})
}

// pieces gives what is written in pieces of random sizes.
type pieces struct {
	net.Conn
	rng *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) { return p.Conn.Read(b[:1+p.rng.IntN(len(b))]) }

// TestLine: what many append comes whole and in order, however it is cut, and in fewer writes than
// there were frames.
func TestLine(t *testing.T) {
	t.Parallel()
	const each, writers = 2000, 8
	near, far := net.Pipe()
	from, to := NewLine(near, RenewalQuestion{}.AppendTo(nil)), NewLine(&pieces{far, rand.New(rand.NewPCG(3, 4))}, RenewalAnswer{}.AppendTo(nil))
	var ends sync.WaitGroup
	ends.Go(func() { _ = from.Run(RenewalAnswerBytes, func([]byte) error { return nil }, nil) })
	got := make(chan RenewalQuestion, each*writers)
	reads := 0
	ends.Go(func() {
		err := to.Run(RenewalQuestionBytes, func(frames []byte) error {
			reads++
			for ; len(frames) > 0; frames = frames[RenewalQuestionBytes:] {
				q, err := ReadRenewalQuestion(frames)
				if err != nil {
					return err
				}
				if q.Number != 0 {
					got <- q
				}
			}
			return nil
		}, nil)
		if !errors.Is(err, io.EOF) {
			t.Errorf("it ended with %v", err)
		}
	})
	for w := range writers {
		ends.Go(func() {
			for i := range each {
				for {
					err := from.Append(RenewalQuestion{Number: uint64(i + 1), Lease: int64(w), Patience: 1}.AppendTo(nil))
					from.Flush()
					if err == nil {
						break
					}
					if !errors.Is(err, ErrLineFull) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	var last [writers]uint64
	for range each * writers {
		q := <-got
		if q.Number != last[q.Lease]+1 {
			t.Fatalf("question %d of writer %d after %d", q.Number, q.Lease, last[q.Lease])
		}
		last[q.Lease] = q.Number
	}
	from.Close(ErrLineUnused)
	ends.Wait()
	if from.Append(nil) != ErrLineUnused || from.Err() != ErrLineUnused {
		t.Errorf("%v", from.Err())
	}
	t.Logf("%d frames in %d reads", each*writers, reads)
}

// TestLineEnds: an end notices that the other one says nothing, or takes nothing; two that have
// nothing to say go on.
func TestLineEnds(t *testing.T) {
	t.Parallel()
	nothing := func([]byte) error { return nil }
	idle := RenewalAnswer{}.AppendTo(nil)
	t.Run("silent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			began := time.Now()
			if err := NewLine(near, idle).Run(RenewalAnswerBytes, nothing, nil); err != errLineSilent || time.Since(began) > LineSilence+LineBeat {
				t.Errorf("%v after %s", err, time.Since(began))
			}
			_ = far.Close()
		})
	})
	t.Run("stuck", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe() // which takes nothing that is not read
			stop := make(chan struct{})
			go func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(LineBeat):
						_, _ = far.Write(idle)
					}
				}
			}()
			line := NewLine(near, idle)
			go func() {
				for line.Append(idle) == nil {
					line.Flush()
				}
			}()
			if err := line.Run(RenewalAnswerBytes, nothing, nil); err != errLineStuck {
				t.Errorf("%v", err)
			}
			if len(line.out) > MaxLineBytes {
				t.Errorf("%d bytes wait", len(line.out))
			}
			close(stop)
			_ = far.Close()
		})
	})
	t.Run("idle", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			a, b := NewLine(near, idle), NewLine(far, idle)
			kept, other := 0, make(chan error, 1)
			go func() { other <- b.Run(RenewalAnswerBytes, nothing, nil) }()
			err := a.Run(RenewalAnswerBytes, nothing, func() bool { kept++; return kept < 3600 })
			if err != ErrLineUnused {
				t.Errorf("%v after %d beats", err, kept)
			}
			if err := <-other; !errors.Is(err, io.EOF) {
				t.Errorf("the other end: %v", err)
			}
		})
	})
	t.Run("refused", func(t *testing.T) {
		near, far := net.Pipe()
		bad := errors.New("no member sends this")
		go func() { _, _ = far.Write(bytes.Repeat([]byte{9}, 40)) }()
		if err := NewLine(near, idle).Run(RenewalAnswerBytes, func([]byte) error { return bad }, nil); err != bad {
			t.Errorf("%v", err)
		}
		_ = far.Close()
	})
}

// TestUpgrade: the handshake, with and without TLS, and every answer that is none.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	serve := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			if conn := Upgrade(w, r, "belay-echo/1"); conn != nil {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}
		case "/other":
			if conn := Upgrade(w, r, "belay-echo/2"); conn != nil {
				t.Error("an upgrade to another version")
			}
		case "/ok":
		default:
			http.NotFound(w, r)
		}
	}
	for _, tls := range []bool{false, true} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(serve))
		if tls {
			s.StartTLS()
		} else {
			s.Start()
		}
		defer s.Close()
		rt := s.Client().Transport
		for _, path := range []string{"/other", "/ok", "/none"} {
			if conn, err := Open(t.Context(), rt, s.URL+path, nil, "belay-echo/1"); !errors.Is(err, ErrNotUpgraded) || conn != nil {
				t.Errorf("%s, TLS %v: %v", path, tls, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		conn, err := Open(ctx, rt, s.URL+"/echo", nil, "belay-echo/1")
		cancel() // it was for the handshake
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"a", "bc", "def"} {
			if _, err := io.WriteString(conn, text); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, len(text))
			if _, err := io.ReadFull(conn, b); err != nil || string(b) != text {
				t.Fatalf("%q %v", b, err)
			}
		}
		waiting := make(chan error, 1)
		go func() {
			_, err := conn.Read(make([]byte, 1))
			waiting <- err
		}()
		_ = conn.Close()
		if err := <-waiting; err == nil {
			t.Error("a Read goes on after Close")
		}
		// What comes right behind the request is not lost.
		if tls {
			continue
		}
		raw, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if _, err := io.WriteString(raw, "GET /echo HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: belay-echo/1\r\n\r\nearly"); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for b := make([]byte, 1024); !bytes.HasSuffix(got, []byte("\r\n\r\nearly")); {
			n, err := raw.Read(b)
			if err != nil {
				t.Fatalf("%v after %q", err, got)
			}
			got = append(got, b[:n]...)
		}
	}
	if _, err := Open(t.Context(), NewRoundTripper(Options{}), "http://127.0.0.1:1/echo", nil, "belay-echo/1"); err == nil || errors.Is(err, ErrNotUpgraded) {
		t.Errorf("nobody there: %v", err)
	}
}
