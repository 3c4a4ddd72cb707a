package snapshotfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt reads its file through a memory map and believes what pages say of each other. In a file
// that was cut off or damaged that ends in a fault of the process that no recover sees: the map ends
// before the page, a length leads out of it, or pages lead to each other in a circle. So the pages
// are walked before bbolt sees them. What passes can be read without a fault, and is in order; that
// keys and values are what was written is for those to say who know them, since bbolt keeps no
// checksums but of its meta pages.
//
//	page     id:8 | flags:2 | count:2 | overflow:4 | elements | keys and values
//	branch   pos:4 | ksize:4 | page:8                           an element; pos counts from its own start
//	leaf     flags:4 | pos:4 | ksize:4 | vsize:4
//	bucket   root:8 | sequence:8 | page, if root is 0           the value of a leaf's element with flag 1
//	meta     magic:4 | version:4 | page size:4 | flags:4 | bucket:16 | freelist:8 | pages:8 | txid:8 | checksum:8
//
// Numbers are little-endian, as on every machine that etcd supports.
const (
	pageHeaderLen = 16
	elementLen    = 16
	bucketLen     = 16
	metaLen       = 64
	metaSummed    = metaLen - 8

	flagBranch   = 1
	flagLeaf     = 2
	flagFreelist = 0x10
	flagBucket   = 1

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreelist  = ^uint64(0)
	manyFree    = 0xffff // then the first 8 bytes say how many free pages there are

	maxTreeDepth = 64      // each level has at least two pages for each of the one above
	maxPageBytes = 1 << 30 // more than any key and value
	minPageSize  = 1 << 10
	maxPageSize  = 64 << 10
)

type pageWalk struct {
	f        io.ReaderAt
	pageSize int64
	pages    uint64   // ids below it are of the database
	seen     []uint64 // a bit for each
	leaf     []byte   // the leaf that is read; branches have their own
}

// meta is what counts of a meta page.
type meta struct{ pageSize, root, freelist, pages, txid uint64 }

// readMeta reads the meta page at an offset; ok is false if it is none.
func readMeta(f io.ReaderAt, offset int64) (m meta, ok bool) {
	b := make([]byte, pageHeaderLen+metaLen)
	if _, err := f.ReadAt(b, offset); err != nil {
		return m, false
	}
	b = b[pageHeaderLen:]
	le := binary.LittleEndian
	sum := fnv.New64a()
	sum.Write(b[:metaSummed])
	if le.Uint32(b) != boltMagic || le.Uint32(b[4:]) != boltVersion || le.Uint64(b[metaSummed:]) != sum.Sum64() {
		return m, false
	}
	return meta{pageSize: uint64(le.Uint32(b[8:])), root: le.Uint64(b[16:]), freelist: le.Uint64(b[32:]), pages: le.Uint64(b[40:]), txid: le.Uint64(b[48:])}, true
}

// newestMeta is the meta page by which bbolt reads the file.
func newestMeta(f io.ReaderAt) (m meta, err error) {
	m, first := readMeta(f, 0)
	var second bool
	var other meta
	if first {
		other, second = readMeta(f, int64(m.pageSize))
	} else {
		for size := int64(minPageSize); size <= maxPageSize && !second; size *= 2 {
			other, second = readMeta(f, size)
			second = second && other.pageSize == uint64(size)
		}
	}
	if !first && !second {
		return m, errors.New("both of its meta pages are damaged")
	}
	if !first || second && other.txid > m.txid {
		m = other
	}
	if m.pageSize < minPageSize || m.pageSize > maxPageSize || m.pageSize&(m.pageSize-1) != 0 {
		return m, fmt.Errorf("its pages have %d bytes", m.pageSize)
	}
	return m, nil
}

// checkPages walks all pages that the database of that many bytes consists of.
func checkPages(f io.ReaderAt, size int64) error {
	m, err := newestMeta(f)
	if err != nil {
		return err
	}
	if m.pages > uint64(size)/m.pageSize {
		return fmt.Errorf("it is cut off: it has %d bytes of %d pages of %d", size, m.pages, m.pageSize)
	}
	w := pageWalk{f: f, pageSize: int64(m.pageSize), pages: m.pages, seen: make([]uint64, m.pages/64+1)}
	if m.freelist != noFreelist {
		if err := w.freelist(m.freelist); err != nil {
			return fmt.Errorf("the list of free pages: %w", err)
		}
	}
	return w.tree(m.root, nil, nil, 0)
}

// freelist checks that the list of free pages ends within its own; etcd's tools read it.
func (w *pageWalk) freelist(id uint64) error {
	head, own, err := w.head(id)
	if err != nil {
		return err
	}
	count := uint64(binary.LittleEndian.Uint16(head[10:]))
	if count == manyFree {
		count = 1 + binary.LittleEndian.Uint64(head[pageHeaderLen:])
	}
	if binary.LittleEndian.Uint16(head[8:]) != flagFreelist || count > uint64(own-pageHeaderLen)/8 {
		return fmt.Errorf("page %d holds none, or not all of it", id)
	}
	return nil
}

// head takes a page with those that follow it, and returns its begin and the length of all.
func (w *pageWalk) head(id uint64) (head [pageHeaderLen + 8]byte, length int64, err error) {
	if err := w.take(id, 1); err != nil {
		return head, 0, err
	}
	if _, err := w.f.ReadAt(head[:], int64(id)*w.pageSize); err != nil {
		return head, 0, err
	}
	if own := binary.LittleEndian.Uint64(head[:]); own != id {
		return head, 0, fmt.Errorf("page %d says that it is page %d", id, own)
	}
	more := uint64(binary.LittleEndian.Uint32(head[12:]))
	if more > 0 {
		if err := w.take(id+1, more); err != nil {
			return head, 0, err
		}
	}
	if length = int64(more+1) * w.pageSize; length > maxPageBytes {
		return head, 0, fmt.Errorf("page %d has %d bytes", id, length)
	}
	return head, length, nil
}

// take notes that pages belong to what is read; none may twice.
func (w *pageWalk) take(id, n uint64) error {
	if id < 2 || id >= w.pages || n > w.pages-id {
		return fmt.Errorf("pages %d to %d are not of the database", id, id+n-1)
	}
	for ; n > 0; id, n = id+1, n-1 {
		if bit := uint64(1) << (id % 64); w.seen[id/64]&bit != 0 {
			return fmt.Errorf("page %d is used twice", id)
		} else {
			w.seen[id/64] |= bit
		}
	}
	return nil
}

// tree walks the pages under one. Their keys must be within [lower, upper); nil: without a bound.
func (w *pageWalk) tree(id uint64, lower, upper []byte, depth int) error {
	if depth > maxTreeDepth {
		return fmt.Errorf("page %d lies too deep", id)
	}
	head, length, err := w.head(id)
	if err != nil {
		return err
	}
	flags := binary.LittleEndian.Uint16(head[8:])
	var page []byte
	switch flags {
	case flagLeaf:
		if int64(cap(w.leaf)) < length {
			w.leaf = make([]byte, length)
		}
		page = w.leaf[:length]
	case flagBranch:
		page = make([]byte, length)
	default:
		return fmt.Errorf("page %d is of no known kind", id)
	}
	if _, err := w.f.ReadAt(page, int64(id)*w.pageSize); err != nil {
		return err
	}
	if flags == flagLeaf {
		buckets, err := leafBuckets(page, lower, upper)
		if err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		for _, root := range buckets {
			if err := w.tree(root, nil, nil, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	keys, err := elementKeys(page, 0, 4, func([]byte) (uint64, error) { return 0, nil }, lower, upper)
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	if len(keys) == 0 {
		return fmt.Errorf("page %d leads nowhere", id)
	}
	for i, key := range keys {
		next := upper
		if i+1 < len(keys) {
			next = keys[i+1]
		}
		child := binary.LittleEndian.Uint64(page[pageHeaderLen+i*elementLen+8:])
		if err := w.tree(child, key, next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// elementKeys checks the elements of a page and returns their keys, which refer to it. posAt and
// ksizeAt are where an element has these; valueLen is the length of what follows its key.
func elementKeys(page []byte, posAt, ksizeAt int, valueLen func(element []byte) (uint64, error), lower, upper []byte) (keys [][]byte, err error) {
	if len(page) < pageHeaderLen {
		return nil, errors.New("it has no header")
	}
	count := int(binary.LittleEndian.Uint16(page[10:]))
	if pageHeaderLen+count*elementLen > len(page) {
		return nil, fmt.Errorf("it has no room for its %d elements", count)
	}
	keys = make([][]byte, 0, count)
	last := lower
	for i := range count {
		start := pageHeaderLen + i*elementLen
		element := page[start : start+elementLen]
		from := uint64(start) + uint64(binary.LittleEndian.Uint32(element[posAt:]))
		size := uint64(binary.LittleEndian.Uint32(element[ksizeAt:]))
		value, err := valueLen(element)
		if err != nil {
			return nil, err
		}
		if size == 0 || from+size+value > uint64(len(page)) {
			return nil, fmt.Errorf("element %d lies outside of it", i)
		}
		key := page[from : from+size]
		if c := bytes.Compare(last, key); last != nil && (c > 0 || c == 0 && i > 0) || upper != nil && bytes.Compare(key, upper) >= 0 {
			return nil, fmt.Errorf("the key of element %d is out of order", i)
		}
		last = key
		keys = append(keys, key)
	}
	return keys, nil
}

// leafBuckets checks a leaf and the buckets that lie within it, and returns the roots of others.
func leafBuckets(page []byte, lower, upper []byte) (roots []uint64, err error) {
	le := binary.LittleEndian
	keys, err := elementKeys(page, 4, 8, func(element []byte) (uint64, error) {
		if flags := le.Uint32(element); flags > flagBucket {
			return 0, fmt.Errorf("an element has the flags %x", flags)
		}
		return uint64(le.Uint32(element[12:])), nil
	}, lower, upper)
	if err != nil {
		return nil, err
	}
	for i, key := range keys {
		start := pageHeaderLen + i*elementLen
		element := page[start : start+elementLen]
		if le.Uint32(element) != flagBucket {
			continue
		}
		from := uint64(start) + uint64(le.Uint32(element[4:])) + uint64(len(key))
		value := page[from : from+uint64(le.Uint32(element[12:]))]
		if len(value) < bucketLen {
			return nil, fmt.Errorf("the bucket %q is cut off", key)
		}
		if root := le.Uint64(value); root != 0 {
			roots = append(roots, root)
			continue
		}
		inline := value[bucketLen:]
		if len(inline) < pageHeaderLen || le.Uint16(inline[8:]) != flagLeaf {
			return nil, fmt.Errorf("the bucket %q is no leaf", key)
		}
		within, err := leafBuckets(inline, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("bucket %q: %w", key, err)
		}
		if len(within) > 0 {
			return nil, fmt.Errorf("the bucket %q holds others", key) // bbolt gives such a one pages of its own
		}
	}
	return roots, nil
}
