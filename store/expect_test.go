package store

import (
	"bytes"
	"testing"
)

// TestExpect: Expect changes nothing but the capacity of a batch.
func TestExpect(t *testing.T) {
	s, err := Open(t.TempDir(), Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, size := range []int{0, 1 << 10, expectBytes, 40 << 20} {
		value := bytes.Repeat([]byte{byte('a' + i)}, 3<<20)
		b := s.NewBatch(uint64(i+1), 1)
		b.Expect(size)
		for j := range 7 { // more than the engine's memtable would take of it
			if err := b.Set(MetaKey(string(rune('k'+j))), value); err != nil {
				t.Fatal(err)
			}
		}
		if got, ok, err := b.Get(MetaKey("k")); err != nil || !ok || !bytes.Equal(got, value) {
			t.Fatalf("inside the batch: %d bytes, %v, %v", len(got), ok, err)
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		for j := range 7 {
			if got, ok, err := s.Get(MetaKey(string(rune('k' + j)))); err != nil || !ok || !bytes.Equal(got, value) {
				t.Fatalf("expected %d: %d bytes, %v, %v", size, len(got), ok, err)
			}
		}
		if index, _ := s.Applied(); index != uint64(i+1) {
			t.Fatalf("applied %d", index)
		}
	}
}
