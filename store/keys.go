package store

import (
	"encoding/binary"
	"math"
)

// The key spaces: the first byte of every key.
const (
	spaceAttachment = 'a'
	spaceCluster    = 'c'
	spaceRemoved    = 'd'
	spaceUser       = 'k'
	spaceLease      = 'l'
	spaceMember     = 'm'
	spaceAlarm      = 'n'
	spacePlace      = 'p' // never in a snapshot: see segments.go
	spaceRevision   = 'r'
	spaceAuth       = 'u'
	spaceMeta       = 'z'
)

const (
	suffixMain    = 8 + 1     // length of a version without sub, its length byte included
	suffixMainSub = 8 + 4 + 1 // with sub
)

// MaxSub is the largest sub revision.
const MaxSub = math.MaxUint32

// allKeys is a span that holds every key, of every space that there ever will be.
func allKeys() (lower, upper []byte) { return []byte{0x01, 0}, []byte{0xff, 0} }

func span(space byte) (lower, upper []byte) { return []byte{space, 0}, []byte{space + 1, 0} }

func knownSpace(b byte) bool {
	switch b {
	case spaceAttachment, spaceCluster, spaceRemoved, spaceUser, spaceLease, spaceMember, spaceAlarm, spaceRevision, spaceAuth, spaceMeta:
		return true
	}
	return false
}

// validKey reports whether key has the form that doc.go draws.
func validKey(key []byte) bool {
	if len(key) < 2 || !knownSpace(key[0]) {
		return false
	}
	switch suffix := int(key[len(key)-1]); suffix {
	case 0:
		return key[0] != spaceUser
	case suffixMain, suffixMainSub:
		return key[0] == spaceUser && len(key) >= 1+1+suffix && key[len(key)-suffix-1] == 0
	default:
		return false
	}
}

// UserKeyLen is the length of the key of a version.
func UserKeyLen(key []byte, sub uint32) int {
	if sub == 0 {
		return 1 + len(key) + 1 + suffixMain
	}
	return 1 + len(key) + 1 + suffixMainSub
}

// AppendUserKey appends the key of one version of a user key. REQUIRES: main > 0.
func AppendUserKey(dst, key []byte, main uint64, sub uint32) []byte {
	dst = AppendUserKeyPrefix(dst, key)
	dst = binary.BigEndian.AppendUint64(dst, main)
	if sub == 0 {
		return append(dst, suffixMain)
	}
	return append(binary.BigEndian.AppendUint32(dst, sub), suffixMainSub)
}

// AppendUserKeyPrefix appends what all versions of a user key begin with. As a bound or the target
// of a seek it sorts before all of them.
func AppendUserKeyPrefix(dst, key []byte) []byte {
	dst = append(dst, spaceUser)
	dst = append(dst, key...)
	return append(dst, 0)
}

// UserKeysSpan holds all versions of all user keys.
func UserKeysSpan() (lower, upper []byte) { return span(spaceUser) }

// ParseUserKey takes the key of a version apart. The parts refer to k: prefix as
// AppendUserKeyPrefix made it, and key.
func ParseUserKey(k []byte) (prefix, key []byte, main uint64, sub uint32, ok bool) {
	if len(k) < 2+suffixMain || k[0] != spaceUser {
		return nil, nil, 0, 0, false
	}
	suffix := int(k[len(k)-1])
	n := len(k) - suffix
	switch {
	case suffix == suffixMain:
	case suffix == suffixMainSub && n >= 2:
		sub = binary.BigEndian.Uint32(k[n+8:])
	default:
		return nil, nil, 0, 0, false
	}
	if k[n-1] != 0 {
		return nil, nil, 0, 0, false
	}
	return k[:n], k[1 : n-1], binary.BigEndian.Uint64(k[n:]), sub, true
}

// RevisionKeyLen is the length of every revision key.
const RevisionKeyLen = 1 + 8 + 4 + 1

// AppendRevisionKey appends the key under which the user key of a revision is found.
func AppendRevisionKey(dst []byte, main uint64, sub uint32) []byte {
	dst = append(dst, spaceRevision)
	dst = binary.BigEndian.AppendUint64(dst, main)
	dst = binary.BigEndian.AppendUint32(dst, sub)
	return append(dst, 0)
}

// ParseRevisionKey is the inverse of AppendRevisionKey.
func ParseRevisionKey(k []byte) (main uint64, sub uint32, ok bool) {
	if len(k) != RevisionKeyLen || k[0] != spaceRevision || k[RevisionKeyLen-1] != 0 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64(k[1:]), binary.BigEndian.Uint32(k[9:]), true
}

// RevisionsSpan holds all revision keys.
func RevisionsSpan() (lower, upper []byte) { return span(spaceRevision) }

// numberKey is a space, one big-endian number, a rest.
func numberKey(space byte, n uint64, rest []byte) []byte {
	k := make([]byte, 0, 1+8+len(rest)+1)
	k = binary.BigEndian.AppendUint64(append(k, space), n)
	return append(append(k, rest...), 0)
}

func parseNumberKey(space byte, k []byte) (n uint64, rest []byte, ok bool) {
	if len(k) < 1+8+1 || k[0] != space || k[len(k)-1] != 0 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(k[1:]), k[9 : len(k)-1], true
}

func parseIDKey(space byte, k []byte) (id uint64, ok bool) {
	id, rest, ok := parseNumberKey(space, k)
	return id, ok && len(rest) == 0
}

func nameKey(space byte, name string) []byte {
	return append(append(append(make([]byte, 0, 2+len(name)), space), name...), 0)
}

// LeaseKey is where a lease is recorded.
func LeaseKey(id int64) []byte { return numberKey(spaceLease, uint64(id), nil) }

// ParseLeaseKey is the inverse of LeaseKey.
func ParseLeaseKey(k []byte) (id int64, ok bool) {
	n, ok := parseIDKey(spaceLease, k)
	return int64(n), ok
}

// LeasesSpan holds all lease records.
func LeasesSpan() (lower, upper []byte) { return span(spaceLease) }

// LeaseAttachmentKey marks a user key as attached to a lease.
func LeaseAttachmentKey(id int64, key []byte) []byte {
	return numberKey(spaceAttachment, uint64(id), key)
}

// ParseLeaseAttachmentKey is the inverse of LeaseAttachmentKey; key refers to k.
func ParseLeaseAttachmentKey(k []byte) (id int64, key []byte, ok bool) {
	n, key, ok := parseNumberKey(spaceAttachment, k)
	return int64(n), key, ok
}

// LeaseAttachmentsSpan holds the attachments of one lease, in the order of the user keys.
func LeaseAttachmentsSpan(id int64) (lower, upper []byte) {
	if uint64(id) == math.MaxUint64 {
		_, upper = span(spaceAttachment)
		return numberKey(spaceAttachment, uint64(id), nil), upper
	}
	return numberKey(spaceAttachment, uint64(id), nil), numberKey(spaceAttachment, uint64(id)+1, nil)
}

// AllLeaseAttachmentsSpan holds the attachments of all leases.
func AllLeaseAttachmentsSpan() (lower, upper []byte) { return span(spaceAttachment) }

// AuthKey is where a record of package auth lives: kind is its own to define.
func AuthKey(kind byte, name string) []byte {
	return append(append(append(make([]byte, 0, 3+len(name)), spaceAuth, kind), name...), 0)
}

// ParseAuthKey is the inverse of AuthKey.
func ParseAuthKey(k []byte) (kind byte, name string, ok bool) {
	if len(k) < 3 || k[0] != spaceAuth || k[len(k)-1] != 0 {
		return 0, "", false
	}
	return k[1], string(k[2 : len(k)-1]), true
}

// AuthSpan holds all records of one kind.
func AuthSpan(kind byte) (lower, upper []byte) {
	if kind == math.MaxUint8 {
		_, upper = span(spaceAuth)
		return []byte{spaceAuth, kind, 0}, upper
	}
	return []byte{spaceAuth, kind, 0}, []byte{spaceAuth, kind + 1, 0}
}

// MemberKey is where a member of the cluster is recorded.
func MemberKey(id uint64) []byte { return numberKey(spaceMember, id, nil) }

// ParseMemberKey is the inverse of MemberKey.
func ParseMemberKey(k []byte) (id uint64, ok bool) { return parseIDKey(spaceMember, k) }

// MembersSpan holds all members.
func MembersSpan() (lower, upper []byte) { return span(spaceMember) }

// RemovedMemberKey marks a member as removed, so that it may not come back.
func RemovedMemberKey(id uint64) []byte { return numberKey(spaceRemoved, id, nil) }

// ParseRemovedMemberKey is the inverse of RemovedMemberKey.
func ParseRemovedMemberKey(k []byte) (id uint64, ok bool) { return parseIDKey(spaceRemoved, k) }

// RemovedMembersSpan holds all removed members.
func RemovedMembersSpan() (lower, upper []byte) { return span(spaceRemoved) }

// AlarmKey exists while a member has raised an alarm.
func AlarmKey(alarm int32, memberID uint64) []byte {
	k := make([]byte, 0, 1+4+8+1)
	k = binary.BigEndian.AppendUint32(append(k, spaceAlarm), uint32(alarm))
	return append(binary.BigEndian.AppendUint64(k, memberID), 0)
}

// ParseAlarmKey is the inverse of AlarmKey.
func ParseAlarmKey(k []byte) (alarm int32, memberID uint64, ok bool) {
	if len(k) != 1+4+8+1 || k[0] != spaceAlarm || k[13] != 0 {
		return 0, 0, false
	}
	return int32(binary.BigEndian.Uint32(k[1:])), binary.BigEndian.Uint64(k[5:]), true
}

// AlarmsSpan holds all alarms.
func AlarmsSpan() (lower, upper []byte) { return span(spaceAlarm) }

// ClusterKey is where a property of the whole cluster lives.
func ClusterKey(name string) []byte { return nameKey(spaceCluster, name) }

// MetaKey is where a part of the state machine keeps a number of its own. Names in use: "applied"
// (this package), "confState" (state), "revision", "scheduledCompactRev", "finishedCompactRev",
// "compactProgress" (mvcc).
func MetaKey(name string) []byte { return nameKey(spaceMeta, name) }

// ConfStateKey is where raft's configuration as of the applied index lives.
func ConfStateKey() []byte { return MetaKey("confState") }

// MetaSpan holds everything that may differ between members which have applied the same entries.
func MetaSpan() (lower, upper []byte) { return span(spaceMeta) }
