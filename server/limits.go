package server

import (
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Limits bound what one request may ask for, where etcd has no bound. 0 is the default in brackets, a negative number no
// limit.
type Limits struct {
	KeyBytes int64 // of a key that is written, and of the name of a new user or role [DefaultKeyBytes]
}

// DefaultKeyBytes is sixteen times what the longest keys of known clients take.
const DefaultKeyBytes = 64 << 10

func (l *Limits) setDefaults() {
	def := func(v *int64, to int64) {
		switch {
		case *v == 0:
			*v = to
		case *v < 0:
			*v = math.MaxInt64
		}
	}
	def(&l.KeyBytes, DefaultKeyBytes)
}

// checkKey refuses to write a key that is too long. Reading and deleting one is not refused: data of etcd may hold it.
func (l *Limits) checkKey(key []byte) error {
	if int64(len(key)) <= l.KeyBytes {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "etcdserver: key is too long: %d bytes, --max-key-bytes is %d", len(key), l.KeyBytes)
}

// checkName is checkKey for the name of a user or role that is to be.
func (l *Limits) checkName(name string) error {
	if int64(len(name)) <= l.KeyBytes {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "etcdserver: name is too long: %d bytes, --max-key-bytes is %d", len(name), l.KeyBytes)
}

// checkKeys is checkKey for all keys that a transaction may write.
func (l *Limits) checkKeys(r *pb.TxnRequest) error {
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			var err error
			switch o := op.GetRequest().(type) {
			case *pb.RequestOp_RequestPut:
				err = l.checkKey(o.RequestPut.GetKey())
			case *pb.RequestOp_RequestTxn:
				err = l.checkKeys(o.RequestTxn)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
