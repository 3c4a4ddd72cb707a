package ctl

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/mirror"

	"github.com/belaydb/belay/cli/connect"
)

// mirrorReport is how often make-mirror prints how many keys it has copied.
const mirrorReport = 30 * time.Second

// mirrorFlags are the flags of make-mirror.
type mirrorFlags struct {
	prefix            string
	destPrefix        string
	noDestPrefix      bool
	rev               int64
	maxTxnOps         uint
	cert, key, cacert string
	insecureTransport bool
	user, password    string
}

func (c *ctl) makeMirrorCommand() *cobra.Command {
	var m mirrorFlags
	cmd := &cobra.Command{
		Use:     "make-mirror [options] <destination>",
		Short:   "Copies keys, and then every change of them, to another cluster",
		GroupID: groupUtility,
	}
	fs := cmd.Flags()
	fs.StringVar(&m.prefix, "prefix", "", "copy the keys that begin with this")
	fs.Int64Var(&m.rev, "rev", 0, "copy the changes from this revision on, and not what was there before (0: everything)")
	fs.UintVar(&m.maxTxnOps, "max-txn-ops", 128, "most operations of a transaction at the destination")
	fs.StringVar(&m.destPrefix, "dest-prefix", "", "what the copies' keys begin with instead of --prefix")
	fs.BoolVar(&m.noDestPrefix, "no-dest-prefix", false, "take --prefix away from the copies' keys")
	fs.StringVar(&m.cert, "dest-cert", "", "file with the client's TLS certificate for the destination")
	fs.StringVar(&m.key, "dest-key", "", "file with the client's TLS key for the destination")
	fs.StringVar(&m.cacert, "dest-cacert", "", "file with the CA certificates that vouch for the destination")
	fs.BoolVar(&m.insecureTransport, "dest-insecure-transport", true, "connect to the destination without TLS when no certificate is given")
	fs.StringVar(&m.user, "dest-user", "", "name[:password] at the destination; the password is asked for if absent")
	fs.StringVar(&m.password, "dest-password", "", "password for --dest-user")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return failf(codeBadArgs, "make-mirror takes one destination argument")
		}
		spec, _, err := c.configure(cmd)
		if err != nil {
			return err
		}
		auth, err := c.destCredentials(&m)
		if err != nil {
			return err
		}
		to := *spec
		to.Endpoints = []string{args[0]}
		to.Auth = auth
		to.Secure = &clientv3.SecureConfig{Cert: m.cert, Key: m.key, Cacert: m.cacert, InsecureTransport: m.insecureTransport}
		dest, err := c.dial(cmd.Context(), &to)
		if err != nil {
			return err
		}
		tellSilence(cmd.Context(), c, dest, c.tls)
		source, err := c.dial(cmd.Context(), spec)
		if err != nil {
			return err
		}
		tellSilence(cmd.Context(), c, source, c.tls)
		if m.noDestPrefix && m.destPrefix != "" {
			return failf(codeBadArgs, "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one")
		}
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		var copied atomic.Int64
		go func() {
			tick := time.NewTicker(mirrorReport)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					fmt.Fprintln(c.out, copied.Load())
				}
			}
		}()
		return m.run(ctx, source, dest, &copied)
	})
	return cmd
}

func (c *ctl) destCredentials(m *mirrorFlags) (*clientv3.AuthConfig, error) {
	switch {
	case m.user == "":
		return nil, nil
	case m.password != "":
		return &clientv3.AuthConfig{Username: m.user, Password: m.password}, nil
	}
	if name, password, ok := strings.Cut(m.user, ":"); ok {
		return &clientv3.AuthConfig{Username: name, Password: password}, nil
	}
	password, err := connect.AskPassword(c.in, c.out, "Destination Password: ")
	if err != nil {
		return nil, err
	}
	return &clientv3.AuthConfig{Username: m.user, Password: password}, nil
}

// run copies until ctx ends or something fails; it always returns an error.
func (m *mirrorFlags) run(ctx context.Context, source, dest *clientv3.Client, copied *atomic.Int64) error {
	from := max(m.rev-1, 0)
	syncer := mirror.NewSyncer(source, m.prefix, from)
	if from == 0 {
		if !m.noDestPrefix && m.destPrefix == "" {
			m.destPrefix = m.prefix
		}
		responses, errs := syncer.SyncBase(ctx)
		for resp := range responses {
			for _, kv := range resp.Kvs {
				if _, err := dest.Put(ctx, m.rename(kv.Key), string(kv.Value)); err != nil {
					return err
				}
				copied.Add(1)
			}
		}
		if err := <-errs; err != nil {
			return err
		}
	}
	for resp := range syncer.SyncUpdates(ctx) {
		if resp.CompactRevision != 0 {
			return rpctypes.ErrCompacted
		}
		// One revision of the source is one transaction, unless it is too long.
		var ops []clientv3.Op
		commit := func() error {
			if len(ops) == 0 {
				return nil
			}
			_, err := dest.Txn(ctx).Then(ops...).Commit()
			ops = nil
			return err
		}
		last := int64(0)
		for _, e := range resp.Events {
			if e.Kv.ModRevision > last && last != 0 || len(ops) >= int(m.maxTxnOps) {
				if err := commit(); err != nil {
					return err
				}
			}
			last = e.Kv.ModRevision
			if e.Type == clientv3.EventTypeDelete {
				ops = append(ops, clientv3.OpDelete(m.rename(e.Kv.Key)))
			} else {
				ops = append(ops, clientv3.OpPut(m.rename(e.Kv.Key), string(e.Kv.Value)))
			}
			copied.Add(1)
		}
		if err := commit(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// rename is the key of the copy. With --rev and no --dest-prefix the prefix is removed, as in
// etcdctl.
func (m *mirrorFlags) rename(key []byte) string {
	return strings.Replace(string(key), m.prefix, m.destPrefix, 1)
}
