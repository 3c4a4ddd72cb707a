package auth

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/authpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/store"
)

// Records in the store, by kind and name (store.AuthKey). They are etcd's own, so that a snapshot
// file takes them as they are:
//
//	kindSetting  "authEnabled"   1 byte, 0 or 1
//	kindSetting  "authRevision"  8 bytes, big endian
//	kindUser     name            authpb.User
//	kindRole     name            authpb.Role
const (
	kindSetting byte = 's'
	kindUser    byte = 'u'
	kindRole    byte = 'r'

	nameEnabled  = "authEnabled"
	nameRevision = "authRevision"
)

// Record is one of them. A nil value deletes it.
type Record struct {
	kind  byte
	name  string
	Value []byte
}

// Key is the record's key in the store.
func (r Record) Key() []byte { return store.AuthKey(r.kind, r.name) }

// Bucket is the name of etcd's bucket for it.
func (r Record) Bucket() string {
	switch r.kind {
	case kindUser:
		return "authUsers"
	case kindRole:
		return "authRoles"
	}
	return "auth"
}

// Name is the record's key within its bucket.
func (r Record) Name() string { return r.name }

func mustMarshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("auth: record that cannot be encoded: %v", err)) // names were valid text when they came
	}
	return b
}

func userRecord(u *authpb.User) Record { return Record{kindUser, string(u.Name), mustMarshal(u)} }
func roleRecord(r *authpb.Role) Record { return Record{kindRole, string(r.Name), mustMarshal(r)} }

func revisionRecord(rev uint64) Record {
	return Record{kindSetting, nameRevision, binary.BigEndian.AppendUint64(nil, rev)}
}

func enabledRecord(on bool) Record {
	value := []byte{0}
	if on {
		value[0] = 1
	}
	return Record{kindSetting, nameEnabled, value}
}

// Records returns all records of a store in the order of their keys.
func Records(r store.Reader, each func(Record) error) error {
	for _, kind := range []byte{kindRole, kindSetting, kindUser} {
		if err := recordsOf(r, kind, each); err != nil {
			return fmt.Errorf("auth: read records: %w", err)
		}
	}
	return nil
}

func recordsOf(r store.Reader, kind byte, each func(Record) error) (err error) {
	lower, upper := store.AuthSpan(kind)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := it.Close(); err == nil {
			err = cerr
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		_, name, ok := store.ParseAuthKey(it.Key())
		if !ok {
			return fmt.Errorf("malformed key %q", it.Key())
		}
		if err := each(Record{kind, name, append([]byte{}, value...)}); err != nil {
			return err
		}
	}
	return it.Error()
}

// Load reads the policy that a store holds.
func Load(r store.Reader, logger *zap.Logger) (*Policy, error) {
	if logger == nil {
		logger = zap.NewNop()
	}
	p := &Policy{logger: logger, revision: 1, users: make(map[string]*user), roles: make(map[string]*authpb.Role)}
	err := Records(r, func(rec Record) error {
		switch {
		case rec.kind == kindUser:
			u := &authpb.User{}
			if err := proto.Unmarshal(rec.Value, u); err != nil {
				return fmt.Errorf("user %q: %w", rec.name, err)
			}
			p.users[rec.name] = newUser(u)
		case rec.kind == kindRole:
			role := &authpb.Role{}
			if err := proto.Unmarshal(rec.Value, role); err != nil {
				return fmt.Errorf("role %q: %w", rec.name, err)
			}
			p.roles[rec.name] = role
		case rec.name == nameEnabled:
			p.enabled = len(rec.Value) == 1 && rec.Value[0] == 1
		case rec.name == nameRevision:
			if len(rec.Value) != 8 {
				return fmt.Errorf("revision of %d bytes", len(rec.Value))
			}
			p.revision = binary.BigEndian.Uint64(rec.Value)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}
