package sim

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
)

// A client's value is its id and then as much noise as the id says. The history
// and the oracle keep ids, so that large values cost them nothing; a value that
// is not exactly what its id says has another id.

// noise does not compress.
var noise = func() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 2<<20)
	for i := 0; i < len(b); i += 8 {
		x := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(x >> (8 * j))
		}
	}
	return b
}()

func valueID(client, n, size int) string { return fmt.Sprintf("%d.%d.%d.", client, n, size) }

// valueOf is the value of an id.
func valueOf(id string) []byte {
	var client, n, size int
	if _, err := fmt.Sscanf(id, "%d.%d.%d.", &client, &n, &size); err != nil {
		return []byte(id) // not a client's
	}
	from := (client*1_000_003 + n*7_919) % (len(noise) - size)
	return append([]byte(id), noise[from:from+size]...)
}

// idOf is the id of a value.
func idOf(value []byte) string {
	var client, n, size int
	head := string(value[:min(len(value), 40)])
	if _, err := fmt.Sscanf(head, "%d.%d.%d.", &client, &n, &size); err != nil {
		return strings.ToValidUTF8(head, "?") + rest(value)
	}
	id := valueID(client, n, size)
	if size < 0 || size > len(noise)/2 || !bytes.Equal(value, valueOf(id)) {
		return id + "damaged" + rest(value)
	}
	return id
}

// rest distinguishes long values with the same head.
func rest(value []byte) string {
	if len(value) <= 40 {
		return ""
	}
	return fmt.Sprintf("(%d bytes, %08x)", len(value), crc32.ChecksumIEEE(value))
}

// bigSize draws a size: most are small, a tenth are up to 1 MB.
func bigSize(r *rand.Rand) int {
	switch p := r.IntN(10); {
	case p < 6:
		return r.IntN(600)
	case p < 9:
		return r.IntN(60 << 10)
	}
	return r.IntN(1 << 20)
}
