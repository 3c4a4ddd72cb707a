package discovery

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
)

// Config says where the members of a new cluster find each other. The zero Config means no
// discovery.
type Config struct {
	Endpoints []string // of the cluster that serves the keys
	Token     string   // names the new cluster there

	DialTimeout, RequestTimeout     time.Duration
	KeepaliveTime, KeepaliveTimeout time.Duration
	MaxSendBytes, MaxReceiveBytes   int // 0: clientv3's

	InsecureTransport       bool // no TLS, unless one of the files is given
	InsecureSkipVerify      bool // believe any certificate
	Cert, Key, CACert       string
	ServerName              string // that the certificate must have; "": the endpoint's
	User, Password, JWToken string
}

// Default is the configuration without any flag.
func Default() Config {
	return Config{
		DialTimeout: 2 * time.Second, RequestTimeout: 5 * time.Second, KeepaliveTime: 2 * time.Second, KeepaliveTimeout: 6 * time.Second,
		InsecureTransport: true,
	}
}

// These end a discovery; all other errors are retried.
var (
	ErrSizeNotFound = errors.New("discovery: size key not found")
	ErrBadSize      = errors.New("discovery: size key is bad")
	ErrFull         = errors.New("discovery: cluster is full")
	ErrInvalidURL   = errors.New("discovery: invalid peer URL")
)

// Error wraps the error of a discovery that ended without a cluster.
type Error struct{ Err error }

func (e *Error) Error() string { return fmt.Sprintf("failed to join discovery cluster (%v)", e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// prefix is where all clusters' keys are.
const prefix = "/_etcd/registry"

// Join registers a member (own: name=url,...) and waits until as many have registered as the
// cluster has members, or ctx ends; it returns them in the form of own. valid reports whether a
// text has that form. All errors but those of ctx and of the configuration are of type *Error.
func Join(ctx context.Context, logger *zap.Logger, cfg Config, id uint64, own string, valid func(string) error) (initialCluster string, err error) {
	if logger == nil {
		logger = zap.NewNop()
	}
	logger = logger.With(zap.String("discovery-token", cfg.Token), zap.String("discovery-endpoints", strings.Join(cfg.Endpoints, ",")))
	client, err := cfg.dial(ctx, logger)
	if err != nil {
		return "", &Error{err}
	}
	defer client.Close()
	root := path.Join(prefix, cfg.Token)
	r := &registry{
		kv: client, watcher: client, logger: logger, timeout: cfg.RequestTimeout, backoff: time.Second,
		sizeKey: path.Join(root, "_config/size"), members: path.Join(root, "members"),
	}
	initialCluster, err = r.join(ctx, path.Join(r.members, command.IDText(id)), own)
	if err == nil && valid(initialCluster) != nil {
		err = ErrInvalidURL
	}
	if err != nil {
		logger.Error("discovery failed to join cluster", zap.String("cluster", initialCluster), zap.Error(err))
		return "", &Error{err}
	}
	logger.Info("discovery joined cluster successfully", zap.String("cluster", initialCluster))
	return initialCluster, nil
}

func (c Config) dial(ctx context.Context, logger *zap.Logger) (*clientv3.Client, error) {
	var secure *tls.Config
	if c.Cert != "" || c.Key != "" || c.CACert != "" || c.ServerName != "" {
		files := transport.TLSInfo{CertFile: c.Cert, KeyFile: c.Key, TrustedCAFile: c.CACert, ServerName: c.ServerName, Logger: logger}
		var err error
		if secure, err = files.ClientConfig(); err != nil {
			return nil, err
		}
	}
	if secure == nil && (!c.InsecureTransport || c.InsecureSkipVerify) {
		secure = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if c.InsecureSkipVerify {
		secure.InsecureSkipVerify = true
	}
	quiet := logger
	if logger.Core().Enabled(zap.InfoLevel) { // of a logger that is quieter already zap would complain itself
		quiet = logger.WithOptions(zap.IncreaseLevel(zap.WarnLevel))
	}
	return clientv3.New(clientv3.Config{
		Context: ctx, Endpoints: c.Endpoints, Logger: quiet,
		DialTimeout: c.DialTimeout, DialKeepAliveTime: c.KeepaliveTime, DialKeepAliveTimeout: c.KeepaliveTimeout,
		MaxCallSendMsgSize: c.MaxSendBytes, MaxCallRecvMsgSize: c.MaxReceiveBytes,
		TLS: secure, Username: c.User, Password: c.Password, Token: c.JWToken,
	})
}

// registry is one cluster's keys.
type registry struct {
	kv      clientv3.KV
	watcher clientv3.Watcher
	logger  *zap.Logger

	timeout          time.Duration // of a request
	backoff          time.Duration // before the second try is twice this, then twice as long each time
	sizeKey, members string
}

// registered is one member there.
type registered struct {
	key, urls string
	created   int64
}

// maxDoublings bounds the pause between two tries.
const maxDoublings = 8

func (r *registry) join(ctx context.Context, ownKey, own string) (string, error) {
	if _, _, _, err := r.look(ctx, ownKey); err != nil {
		return "", err
	}
	err := r.retry(ctx, "register member itself", func(ctx context.Context) error {
		if _, err := r.kv.Put(ctx, ownKey, own); err != nil {
			r.logger.Warn("failed to register members itself to the discovery service", zap.String("memberKey", ownKey), zap.Error(err))
			return err
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	r.logger.Info("register member itself successfully", zap.String("memberKey", ownKey), zap.String("memberInfo", own))
	found, size, revision, err := r.look(ctx, ownKey)
	if err != nil {
		return "", err
	}
	for len(found) < size {
		if found, err = r.wait(ctx, found, size, revision); err != nil {
			return "", err
		}
		if len(found) < size { // the watch was lost; its revision may be compacted by now
			if found, size, revision, err = r.look(ctx, ownKey); err != nil {
				return "", err
			}
		}
	}
	var all []string
	for _, m := range found[:size] {
		all = append(all, m.urls)
	}
	return strings.Join(all, ","), nil
}

// retry repeats a step until it works, is refused for good, or ctx ends.
func (r *registry) retry(ctx context.Context, step string, try func(context.Context) error) error {
	for doublings := 1; ; doublings = min(doublings+1, maxDoublings) {
		bounded, cancel := context.WithTimeout(ctx, r.timeout)
		err := try(bounded)
		cancel()
		if err == nil || errors.Is(err, ErrSizeNotFound) || errors.Is(err, ErrBadSize) || ctx.Err() != nil {
			return err
		}
		pause := r.backoff << doublings
		r.logger.Warn("retry connecting to discovery service", zap.String("reason", step), zap.Duration("backoff", pause))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// look reads the cluster's size and members. ErrFull: there are enough without the one of ownKey.
func (r *registry) look(ctx context.Context, ownKey string) (found []registered, size int, revision int64, err error) {
	err = r.retry(ctx, "cluster status check", func(ctx context.Context) error {
		resp, err := r.kv.Get(ctx, r.sizeKey)
		if err != nil {
			r.logger.Warn("failed to get cluster size from discovery service", zap.String("clusterSizeKey", r.sizeKey), zap.Error(err))
			return err
		}
		if len(resp.Kvs) == 0 {
			return ErrSizeNotFound
		}
		if size, err = strconv.Atoi(string(resp.Kvs[0].Value)); err != nil || size <= 0 {
			return ErrBadSize
		}
		if resp, err = r.kv.Get(ctx, r.members, clientv3.WithPrefix()); err != nil {
			r.logger.Warn("failed to get cluster members from discovery service", zap.String("membersKeyPrefix", r.members), zap.Error(err))
			return err
		}
		found, revision = nil, resp.Header.Revision
		for _, kv := range resp.Kvs {
			found = r.add(found, registered{string(kv.Key), string(kv.Value), kv.CreateRevision})
		}
		return nil
	})
	if err != nil {
		return nil, 0, 0, err
	}
	own := slices.IndexFunc(found, func(m registered) bool { return m.key == ownKey })
	if own >= size || own < 0 && len(found) >= size {
		return nil, 0, 0, ErrFull
	}
	return found, size, revision, nil
}

// add keeps found in the order of creation: when too many register at once, all agree on which are
// in.
func (r *registry) add(found []registered, m registered) []registered {
	m.key, m.urls = strings.TrimSpace(m.key), strings.TrimSpace(m.urls)
	fields := []zap.Field{zap.String("memberKey", m.key), zap.String("memberInfo", m.urls)}
	switch {
	case !strings.Contains(m.urls, "="):
		r.logger.Warn("invalid peer info returned from discovery service", fields...)
		return found
	case slices.ContainsFunc(found, func(o registered) bool { return o.key == m.key }):
		r.logger.Warn("found duplicate peer from discovery service", fields...)
		return found
	}
	r.logger.Info("found peer from discovery service", fields...)
	found = append(found, m)
	slices.SortStableFunc(found, func(a, b registered) int { return cmp.Compare(a.created, b.created) })
	return found
}

// wait watches the members that come after revision, until there are size of them or the watch
// ends.
func (r *registry) wait(ctx context.Context, found []registered, size int, revision int64) ([]registered, error) {
	r.logger.Info("waiting for peers from discovery service", zap.Int("clusterSize", size), zap.Int("found-peers", len(found)))
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range r.watcher.Watch(watching, r.members, clientv3.WithPrefix(), clientv3.WithRev(revision+1)) {
		if resp.Err() != nil {
			break
		}
		for _, event := range resp.Events {
			found = r.add(found, registered{string(event.Kv.Key), string(event.Kv.Value), event.Kv.CreateRevision})
		}
		if len(found) >= size {
			r.logger.Info("found all needed peers from discovery service", zap.Int("clusterSize", size), zap.Int("found-peers", len(found)))
			return found, nil
		}
	}
	// A watch that keeps ending at once must not become a busy loop.
	select {
	case <-ctx.Done():
		return found, ctx.Err()
	case <-time.After(r.backoff):
		return found, nil
	}
}
