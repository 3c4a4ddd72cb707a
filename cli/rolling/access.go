package rolling

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/cli/connect"
)

// rootHint is what to do where the user is wrong, or has no right to compare data.
const rootHint = "Hint: the cluster has users: give --user NAME[:PASSWORD] (or ETCDCTL_USER) of one that has the role root"

// silent reports whether an error means that nobody has answered, rather than that somebody
// refused.
func silent(err error) bool {
	code := status.Code(err)
	return errors.Is(err, context.DeadlineExceeded) || code == codes.Unavailable || code == codes.DeadlineExceeded
}

// about is an error of a request to any endpoint with what is behind it: the user's rights, or what
// is wrong with the endpoints. It is a refusal if waiting does not help.
func (l *looker) about(err error) error {
	if _, ok := errors.AsType[refusal](err); ok || err == nil {
		return err
	}
	for _, e := range []error{rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrUserNotFound, rpctypes.ErrAuthFailed} {
		if errors.Is(err, e) || errors.Is(rpctypes.Error(err), e) {
			return refuse(rootHint, "%w", err)
		}
	}
	if strings.HasPrefix(status.Convert(err).Message(), "auth: ") { // etcd 3.5's HashKV does not translate them
		return refuse(rootHint, "%w", err)
	}
	if !silent(err) {
		return err
	}
	var hints []string
	refused := 0
	for _, ep := range l.cfg.Endpoints {
		why := connect.Probe(ep, l.cfg.TLS)
		if why == nil {
			continue
		}
		if _, ok := errors.AsType[*connect.TLSError](why); ok {
			refused++
		}
		hints = append(hints, connect.Hint(ep, why))
	}
	switch {
	case refused > 0 && refused == len(l.cfg.Endpoints):
		return refuse(strings.Join(hints, "\n"), "%w", err)
	case len(hints) > 0:
		return fmt.Errorf("%w\n%s", err, strings.Join(hints, "\n"))
	}
	return err
}

// refused is about, of what no wait mends alone; nil: nothing is known to be. Who prints other errors
// looks at the endpoints by itself.
func (l *looker) refused(err error) error {
	if _, ok := errors.AsType[refusal](err); ok {
		return nil // by the members as they are now
	}
	if why, ok := errors.AsType[refusal](l.about(err)); ok {
		return why
	}
	return nil
}

// mayCompare tells whether the user may ask every member for its hash, which the checks need,
// before anything has been stopped: it asks for the hash of a revision that is not there yet.
func (l *looker) mayCompare(ctx context.Context, c *Cluster) error {
	for _, m := range c.Members {
		if m.Status == nil {
			continue
		}
		cli, err := l.at(m.Endpoint)
		if err == nil {
			err = l.bounded(ctx, func(ctx context.Context) error {
				_, err := cli.HashKV(ctx, m.Endpoint, math.MaxInt64)
				return err
			})
		}
		if err != nil && !errors.Is(err, rpctypes.ErrFutureRev) {
			err = l.about(err)
			named := fmt.Errorf("%s does not tell the hash of its data: %w", m.Called(), err)
			if why, ok := errors.AsType[refusal](err); ok {
				return refusal{named, why.hint}
			}
			return named
		}
	}
	return nil
}

// health is why a member that does not answer otherwise is not well, by its own words over HTTP; ""
// if it says nothing.
func (l *looker) health(ctx context.Context, endpoint string) string {
	base := connect.HTTPBase(endpoint, l.cfg.TLS != nil)
	if base == "" {
		return ""
	}
	var said struct{ Health, Reason string }
	if _, body := l.page(ctx, base+"/health"); json.Unmarshal(body, &said) != nil {
		return ""
	}
	return said.Reason
}
