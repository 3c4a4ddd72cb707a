package crc32c

import (
	"math/rand/v2"
	"testing"
)

func TestParts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		data := make([]byte, rng.IntN(1<<rng.IntN(16)))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		n := rng.IntN(len(data) + 1)
		a, b := data[:n], data[n:]
		whole := Checksum(data)
		if got := Last(whole, Checksum(a), len(b)); got != Checksum(b) {
			t.Fatalf("last %d of %d bytes: %x, want %x", len(b), len(data), got, Checksum(b))
		}
		if got := First(whole, Checksum(b), len(b)); got != Checksum(a) {
			t.Fatalf("first %d of %d bytes: %x, want %x", len(a), len(data), got, Checksum(a))
		}
		seed := rng.Uint32()
		if got := Last(Update(seed, data), Update(seed, a), len(b)); got != Checksum(b) {
			t.Fatalf("last %d of %d bytes with a seed: %x, want %x", len(b), len(data), got, Checksum(b))
		}
	}
	if f := Factor(order); f != one {
		t.Errorf("the powers of x do not repeat themselves: %x", f)
	}
}

func BenchmarkLast(b *testing.B) {
	for b.Loop() {
		Last(1, 2, 1<<20)
	}
}
