// Package crc32c computes CRC-32C checksums (Castagnoli), and those of parts of data from those of the
// whole, without reading the part again.
//
// A checksum is the rest of a division of polynomials over GF(2). That of A followed by B is that of
// A, multiplied by x to the power of the number of B's bits, plus that of B; so each of the three
// follows from the other two. The standard library has no such function; zlib's crc32_combine is one of
// them.
package crc32c

import "hash/crc32"

var table = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C of data.
func Checksum(data []byte) uint32 { return crc32.Checksum(data, table) }

// Update is the checksum of what crc is of, followed by data.
func Update(crc uint32, data []byte) uint32 { return crc32.Update(crc, table, data) }

// Last is the checksum of the last n bytes of data, whose checksum is whole; first is that of the bytes
// before them. It also takes a pair that Update has made of another first checksum than 0.
func Last(whole, first uint32, n int) uint32 { return whole ^ Move(first, Factor(n)) }

// First is the checksum of what comes before the last n bytes of data, whose checksum is whole; last is
// that of those bytes.
func First(whole, last uint32, n int) uint32 { return Move(whole^last, Factor(-n)) }

// Factor is x to the power of 8n: with it, Move has n bytes follow; or removes them, if n is negative.
func Factor(n int) uint32 {
	f, e := uint32(one), (int64(n)%order*8%order+order)%order
	for i := 0; e > 0; i, e = i+1, e>>1 {
		if e&1 != 0 {
			f = Move(f, powers[i])
		}
	}
	return f
}

// Move multiplies a checksum by a factor: Move(a, Factor(n)) ^ b is the checksum of A followed by n
// bytes B.
func Move(crc, factor uint32) (product uint32) {
	for ; crc != 0; crc <<= 1 { // the top bit is the lowest power
		if crc&one != 0 {
			product ^= factor
		}
		factor = factor>>1 ^ polynomial&-(factor&1)
	}
	return product
}

// The polynomial is x+1 times a primitive one of degree 31, so the powers of x repeat themselves after
// order.
const (
	polynomial = crc32.Castagnoli // without x^32; x^31 is the lowest bit
	one        = 1 << 31
	order      = 1<<31 - 1
)

// powers are x^(2^i).
var powers = func() (p [31]uint32) {
	p[0] = one >> 1
	for i := 1; i < len(p); i++ {
		p[i] = Move(p[i-1], p[i-1])
	}
	return p
}()
