package lease

import "github.com/belaydb/belay/store"

// Records calls each for every lease that r holds, by ascending id, with its TTL and its checkpoint
// in seconds as they are stored. It is for copying the leases of a view elsewhere.
func Records(r store.Reader, each func(id ID, ttl, remaining int64) error) error {
	var failed error
	err := readRecords(r, func(id ID, ttl, remaining int64) {
		if failed == nil {
			failed = each(id, ttl, remaining)
		}
	})
	if failed != nil {
		return failed
	}
	return err
}
