package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// In a depot each cluster has a folder, by its id in hexadecimal, and in it each backup one:
//
//	9f3c.../20261129T101500.000Z-full-r4711-8e9e05c52164694d/
//	    0001.part, 0002.part, ...   what was saved
//	    manifest.json               written last: without it the folder is no backup
//	    proof.json                  written when the backup was restored and compared, or was not
//
// manifest.json and proof.json are JSON and a last line that seals it:
//
//	{ ... }\n
//	sha256 (64 hexadecimal digits of the SHA-256 of what stands before this line)\n
const (
	// formatVersion is in manifests and proofs. A reader refuses a higher one.
	formatVersion = 1
	manifestName  = "manifest.json"
	proofName     = "proof.json"

	// maxSealedBytes bounds what is read as a manifest: 5 million parts.
	maxSealedBytes = 1 << 30
)

// The kinds of backups.
const (
	Full      = "full"
	Increment = "increment"
)

// A Manifest says what a backup is, and seals its parts.
type Manifest struct {
	Format int    `json:"format"`
	Kind   string `json:"kind"` // Full, Increment
	Belay  string `json:"belay"`

	Cluster    string `json:"cluster"` // id in hexadecimal
	Member     string `json:"member"`  // that made it
	MemberName string `json:"memberName,omitempty"`

	// Parent and its manifest's seal: an increment goes on from there. Empty: a full one.
	Parent     string `json:"parent,omitempty"`
	ParentSeal string `json:"parentSeal,omitempty"`

	// Time is when the state was as it was saved, by the member's clock.
	Time time.Time `json:"time"`
	// Revision is the newest one. Versions after After are in the backup: of a full one 0, of an
	// increment its parent's Revision.
	Revision int64 `json:"revision"`
	After    int64 `json:"after,omitempty"`
	// Compacted is the newest compaction, at or below After in an increment; -1: none.
	Compacted int64  `json:"compacted"`
	Index     uint64 `json:"index"` // raft's, applied
	Term      uint64 `json:"term"`
	// Hash is HashKV at Revision as the member computed it; nil: it did not.
	Hash *uint32 `json:"hashKV,omitempty"`
	// Newest is the SHA-256 of the versions of the newest revision, by which another member knows
	// whether its history is the same; empty: it has none.
	Newest string `json:"newest,omitempty"`

	Versions int64 `json:"versions"` // tombstones included; in an increment its own
	Leases   int64 `json:"leases"`
	Auth     int64 `json:"auth"` // records of users, roles and their settings

	ClusterVersion string   `json:"clusterVersion,omitempty"`
	Members        []Member `json:"members,omitempty"`
	Alarms         []Alarm  `json:"alarms,omitempty"`

	// Times are when which revision was the newest, oldest first, since the parent.
	Times []Sighting `json:"times,omitempty"`

	Parts []Part `json:"parts"`
}

// A Member is one of the cluster at that time. A restore makes new ones; this is to tell a person
// what there was.
type Member struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
	Learner    bool     `json:"learner,omitempty"`
}

// An Alarm is one that was active.
type Alarm struct {
	Member uint64 `json:"member"`
	Alarm  int32  `json:"alarm"`
}

// A Sighting is a time at which a revision was the newest.
type Sighting struct {
	Time     time.Time `json:"t"`
	Revision int64     `json:"r"`
}

// What a part holds.
const (
	partVersions = "versions"
	partState    = "state" // leases, users and roles
)

// A Part is a file of a backup.
type Part struct {
	Name    string `json:"name"`
	Holds   string `json:"holds"`
	Records int64  `json:"records"`
	Bytes   int64  `json:"bytes"`  // of the file
	Raw     int64  `json:"raw"`    // of the records, before compression
	SHA256  string `json:"sha256"` // of the file
}

// A Proof says how a backup was tried, and what came of it.
type Proof struct {
	Format int       `json:"format"`
	Seal   string    `json:"seal"` // of the manifest that it is about
	Time   time.Time `json:"time"`
	By     string    `json:"by"` // the member, or "command"
	Good   bool      `json:"good"`
	// Restored: it was restored with its ancestors into a scratch store; otherwise it was read back and
	// its sums compared.
	Restored bool    `json:"restored"`
	Hash     *uint32 `json:"hashKV,omitempty"` // of the scratch store, equal to the manifest's; nil: not compared
	Versions int64   `json:"versions"`         // restored, ancestors included
	Leases   int64   `json:"leases"`
	Error    string  `json:"error,omitempty"` // why it is not good
}

// seal encodes v with its seal.
func seal(v any) (b []byte, sum string, err error) {
	b, err = json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil, "", err
	}
	b = append(b, '\n')
	digest := sha256.Sum256(b)
	sum = hex.EncodeToString(digest[:])
	return append(b, "sha256 "+sum+"\n"...), sum, nil
}

// errUnsealed is what is said of a file that was cut or changed.
var errUnsealed = errors.New("it was cut or changed: its seal does not match")

// unseal decodes what seal has encoded.
func unseal(b []byte, v any) (sum string, err error) {
	const line = len("sha256 ") + 2*sha256.Size + len("\n")
	if len(b) < line || b[len(b)-1] != '\n' {
		return "", errUnsealed
	}
	body, last := b[:len(b)-line], string(b[len(b)-line:])
	digest := sha256.Sum256(body)
	sum = hex.EncodeToString(digest[:])
	if last != "sha256 "+sum+"\n" {
		return "", errUnsealed
	}
	var version struct{ Format int }
	if err := json.Unmarshal(body, &version); err != nil {
		return "", err
	}
	if version.Format > formatVersion || version.Format < 1 {
		return "", fmt.Errorf("it has format %d, and this Belay reads 1 to %d: use a newer one", version.Format, formatVersion)
	}
	return sum, json.Unmarshal(body, v)
}

// check refuses what no Belay writes, so that nothing that reads the manifest needs to.
func (m *Manifest) check() error {
	switch {
	case m.Kind != Full && m.Kind != Increment:
		return fmt.Errorf("it is of the unknown kind %q", m.Kind)
	case (m.Kind == Increment) != (m.Parent != ""):
		return errors.New("only an increment has a parent")
	case m.Revision < 1 || m.After < 0 || m.After > m.Revision || m.Compacted > m.Revision:
		return fmt.Errorf("it has the impossible revisions %d, %d, %d", m.Revision, m.After, m.Compacted)
	case m.Kind == Increment && m.Compacted > m.After:
		return fmt.Errorf("a compaction at %d took a part of it", m.Compacted)
	}
	for i, p := range m.Parts {
		if p.Name != partName(i) || p.Bytes < int64(len(partMagic)) || p.Bytes > math.MaxInt32 || p.Raw < 0 || p.Raw > math.MaxInt32 || p.Holds != partVersions && p.Holds != partState {
			return fmt.Errorf("part %d is impossible", i+1)
		}
	}
	return nil
}

// bytes is how much the parts take.
func (m *Manifest) bytes() (n int64) {
	for _, p := range m.Parts {
		n += p.Bytes
	}
	return n
}

// A part is
//
//	0   8  "belaybak"
//	8      records, compressed by zstd as one frame
//
// and a record
//
//	+------+------------------+----------------------+
//	| kind | length (uvarint) | body of length bytes |
//	+------+------------------+----------------------+
//
//	kind 'v'  version   main, sub (uvarint), 1 if it is a tombstone, otherwise 0 (byte), a KeyValue
//	                    in protobuf as etcd stores it
//	kind 'l'  lease     id, TTL, remaining TTL (varint)
//	kind 'a'  auth      length (uvarint) and name of etcd's bucket, the same of the name in it, the value
//
// Versions ascend by main and sub, through all parts and all backups of a chain.
const (
	partMagic = "belaybak"

	recordVersion = 'v'
	recordLease   = 'l'
	recordAuth    = 'a'

	// windowBytes is zstd's; a decoder's bound on memory must not be below it.
	windowBytes = 1 << 20

	// partBytes is how many bytes of records a part has, but for one that is larger alone.
	partBytes = 8 << 20
)

func partName(i int) string { return fmt.Sprintf("%04d.part", i+1) }

func appendRecord(b []byte, kind byte, body ...[]byte) []byte {
	n := 0
	for _, piece := range body {
		n += len(piece)
	}
	b = binary.AppendUvarint(append(b, kind), uint64(n))
	for _, piece := range body {
		b = append(b, piece...)
	}
	return b
}

func appendVersion(b []byte, main, sub int64, tombstone bool, value []byte) []byte {
	var head [2*binary.MaxVarintLen64 + 1]byte
	h := binary.AppendUvarint(binary.AppendUvarint(head[:0], uint64(main)), uint64(sub))
	if tombstone {
		h = append(h, 1)
	} else {
		h = append(h, 0)
	}
	return appendRecord(b, recordVersion, h, value)
}

func appendLease(b []byte, id, ttl, remaining int64) []byte {
	var body []byte
	for _, n := range []int64{id, ttl, remaining} {
		body = binary.AppendVarint(body, n)
	}
	return appendRecord(b, recordLease, body)
}

func appendAuth(b []byte, bucket, name string, value []byte) []byte {
	var body []byte
	for _, text := range []string{bucket, name} {
		body = append(binary.AppendUvarint(body, uint64(len(text))), text...)
	}
	return appendRecord(b, recordAuth, body, value)
}

// errRecord is what is said of records that no Belay writes.
var errRecord = errors.New("it has a record that cannot be")

// fields reads the fields of a record's body; the first failure stays.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) uvarint() uint64 {
	n, size := binary.Uvarint(f.b)
	if size <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[size:]
	return n
}

func (f *fields) varint() int64 {
	n, size := binary.Varint(f.b)
	if size <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[size:]
	return n
}

func (f *fields) take(n uint64) []byte {
	if n > uint64(len(f.b)) {
		f.bad, f.b = true, nil
		return nil
	}
	taken := f.b[:n]
	f.b = f.b[n:]
	return taken
}

// A savedVersion is a record of that kind; value may be kept as long as its part.
type savedVersion struct {
	main, sub int64
	tombstone bool
	value     []byte
}

func decodeVersion(body []byte) (v savedVersion, err error) {
	f := fields{b: body}
	main, sub, flag := f.uvarint(), f.uvarint(), f.take(1)
	if f.bad || main == 0 || main > math.MaxInt64 || sub > math.MaxInt64 || flag[0] > 1 {
		return v, errRecord
	}
	return savedVersion{int64(main), int64(sub), flag[0] == 1, f.b}, nil
}

func decodeLease(body []byte) (id, ttl, remaining int64, err error) {
	f := fields{b: body}
	id, ttl, remaining = f.varint(), f.varint(), f.varint()
	if f.bad || len(f.b) > 0 {
		return 0, 0, 0, errRecord
	}
	return id, ttl, remaining, nil
}

func decodeAuth(body []byte) (bucket, name string, value []byte, err error) {
	f := fields{b: body}
	bucket = string(f.take(f.uvarint()))
	name = string(f.take(f.uvarint()))
	if f.bad {
		return "", "", nil, errRecord
	}
	return bucket, name, bytes.Clone(f.b), nil
}

// eachRecord calls each with every record of a part's raw bytes.
func eachRecord(raw []byte, each func(kind byte, body []byte) error) error {
	for f := (fields{b: raw}); len(f.b) > 0; {
		kind := f.take(1)[0]
		body := f.take(f.uvarint())
		if f.bad {
			return errRecord
		}
		if err := each(kind, body); err != nil {
			return err
		}
	}
	return nil
}

// newEncoder and newDecoder use one goroutine, the caller's, and little memory.
func newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(windowBytes))
}

// encodePart makes a part's file.
func encodePart(enc *zstd.Encoder, i int, holds string, records int64, raw []byte) ([]byte, Part) {
	b := enc.EncodeAll(raw, []byte(partMagic))
	sum := sha256.Sum256(b)
	return b, Part{Name: partName(i), Holds: holds, Records: records, Bytes: int64(len(b)), Raw: int64(len(raw)), SHA256: hex.EncodeToString(sum[:])}
}

// decodePart gives a part's records back, if the file is the one that was sealed.
func decodePart(p Part, b []byte) (raw []byte, err error) {
	if int64(len(b)) != p.Bytes {
		return nil, fmt.Errorf("it has %d bytes, and %d were written", len(b), p.Bytes)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != strings.ToLower(p.SHA256) {
		return nil, errors.New("it was changed: its SHA-256 is not the one in the manifest")
	}
	frame, ok := bytes.CutPrefix(b, []byte(partMagic))
	if !ok {
		return nil, errors.New("it is no part of a backup")
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(max(uint64(p.Raw), 2*windowBytes)))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	raw, err = dec.DecodeAll(frame, make([]byte, 0, p.Raw))
	if err == nil && int64(len(raw)) != p.Raw {
		err = fmt.Errorf("it has %d bytes of records, and %d were saved", len(raw), p.Raw)
	}
	return raw, err
}
