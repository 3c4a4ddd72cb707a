package store_test

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/store"
)

// A batch is made with the index and the term of its raft entry, and writes them with its data: the
// two cannot part.
func ExampleStore_NewBatch() {
	s, err := store.Open("data", store.Options{FS: vfs.NewMem()})
	if err != nil {
		panic(err)
	}
	defer s.Close()
	b := s.NewBatch(5, 2)
	defer b.Close()
	if err := b.Commit(); err != nil {
		panic(err)
	}
	fmt.Println(s.Applied())
	// Output: 5 2
}
