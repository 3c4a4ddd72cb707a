package auth

import "fmt"

// RecordOf is the record that etcd keeps in a bucket under a name: the inverse of Record.Bucket and
// Record.Name.
func RecordOf(bucket, name string, value []byte) (Record, error) {
	for _, kind := range []byte{kindUser, kindRole, kindSetting} {
		if r := (Record{kind, name, value}); r.Bucket() == bucket {
			return r, nil
		}
	}
	return Record{}, fmt.Errorf("auth: etcd has no bucket %q of users and roles", bucket)
}
