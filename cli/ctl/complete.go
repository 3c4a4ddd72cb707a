package ctl

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/connect"
)

const (
	// completionTime bounds what a shell waits for when the cluster does not answer.
	completionTime = time.Second
	// mostCandidates is how many a shell is offered; more are of no use.
	mostCandidates = 200
	// keysAtOnce is how many keys one request reads, and mostKeyReads how many requests a
	// completion makes: what lies behind them is not offered.
	keysAtOnce   = 256
	mostKeyReads = 20
)

// A completer answers a shell that asks how a line may go on.
type completer struct{ ctl *ctl }

// register has the cluster's own names offered by a shell: keys as far as the next slash,
// members, users, roles, leases. A cluster that does not answer, or a password that would have to be
// asked for, offers nothing: a shell in the middle of a line shows no errors.
func (c completer) register(root *cobra.Command) {
	offer := func(path string, kinds ...candidates) {
		cmd, _, err := root.Find(strings.Fields(path))
		if err != nil || cmd.CommandPath() != root.CommandPath()+" "+path {
			panic("ctl: no command " + path)
		}
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
			if len(args) >= len(kinds) || kinds[len(args)] == nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return c.candidates(cmd, kinds[len(args)], begun)
		}
	}
	members := membersThat(func(*pb.Member) bool { return true })
	learners := membersThat((*pb.Member).GetIsLearner)
	offer("get", keys, keys)
	offer("put", keys, nil)
	offer("del", keys, keys)
	offer("watch", keys, keys)
	offer("history", keys)
	offer("restore-key", keys)
	offer("diff", nil, nil, keys)
	offer("lock", keys)
	offer("elect", keys)
	offer("move-leader", members)
	offer("member remove", members)
	offer("member update", members)
	offer("member promote", learners)
	offer("member replace", members)
	offer("user get", users)
	offer("user delete", users)
	offer("user passwd", users)
	offer("user grant-role", users, roles)
	offer("user revoke-role", users, roles)
	offer("role get", roles)
	offer("role delete", roles)
	offer("role grant-permission", roles, permissions, keys, keys)
	offer("role revoke-permission", roles, keys, keys)
	offer("lease revoke", leases)
	offer("lease timetolive", leases)
	offer("lease keep-alive", leases)
	// The flags are registered before this, so neither can fail.
	_ = root.RegisterFlagCompletionFunc("endpoints", func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		given, last := "", begun
		if i := strings.LastIndexByte(begun, ','); i >= 0 {
			given, last = begun[:i+1], begun[i+1:]
			c.ctl.global.Endpoints = strings.Split(begun[:i], ",")
		}
		found, directive := c.candidates(cmd, endpoints, last)
		for i := range found {
			found[i] = given + found[i]
		}
		return found, directive | cobra.ShellCompDirectiveNoSpace
	})
}

// candidates are what may stand at a place of the line; begun is what is there already.
type candidates func(ctx context.Context, cli *clientv3.Client, begun string) (found []string, noSpace bool, err error)

func (c completer) candidates(cmd *cobra.Command, kind candidates, begun string) ([]string, cobra.ShellCompDirective) {
	// Warnings of the variables would be printed into the line.
	if err := connect.FromEnvironment(cmd.InheritedFlags(), io.Discard); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	g := &c.ctl.global
	if g.User != "" && g.Password == "" && !strings.Contains(g.User, ":") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	targets, err := g.Targets(io.Discard)
	if err != nil || len(targets) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	auth, err := g.Credentials(strings.NewReader(""), io.Discard)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	spec := g.Spec(targets, auth)
	spec.DialTimeout = min(spec.DialTimeout, completionTime)
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	cli, err := c.ctl.dial(ctx, spec)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer cli.Close()
	found, noSpace, err := kind(ctx, cli, begun)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	directive := cobra.ShellCompDirectiveNoFileComp
	if noSpace {
		directive |= cobra.ShellCompDirectiveNoSpace
	}
	return found, directive
}

// keys offers keys that begin so; of those that have a slash later on, what is before it, as a shell
// does with folders. Keys that a shell would take apart are left out.
func keys(ctx context.Context, cli *clientv3.Client, begun string) (found []string, noSpace bool, err error) {
	from, end := begun, clientv3.GetPrefixRangeEnd(begun)
	if from == "" {
		from, end = "\x00", "\x00"
	}
	for range mostKeyReads {
		resp, err := cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(keysAtOnce), clientv3.WithSerializable())
		if err != nil {
			return found, noSpace, err
		}
		for _, kv := range resp.Kvs {
			key := string(kv.Key)
			if key < from {
				continue // of a folder that was offered
			}
			if i := strings.IndexByte(key[len(begun):], '/'); i >= 0 {
				key = key[:len(begun)+i+1]
				from = clientv3.GetPrefixRangeEnd(key)
			} else {
				from = key + "\x00"
			}
			if !plain(key) {
				continue
			}
			noSpace = noSpace || strings.HasSuffix(key, "/")
			if found = append(found, key); len(found) == mostCandidates {
				return found, noSpace, nil
			}
		}
		if !resp.More {
			break
		}
	}
	return found, noSpace, nil
}

// plain reports whether a shell takes a text as one word as it is.
func plain(word string) bool {
	return word != "" && strings.IndexFunc(word, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-@+,=%:", r)
	}) < 0
}

func membersThat(fits func(m *pb.Member) bool) candidates {
	return func(ctx context.Context, cli *clientv3.Client, begun string) (found []string, _ bool, err error) {
		resp, err := cli.MemberList(ctx)
		if err != nil {
			return nil, false, err
		}
		for _, m := range resp.Members {
			if id := fmt.Sprintf("%x", m.ID); strings.HasPrefix(id, begun) && fits(m) {
				found = append(found, id+"\t"+about(m))
			}
		}
		return found, false, nil
	}
}

func about(m *pb.Member) string {
	switch {
	case m.Name == "":
		return "not started, " + strings.Join(m.PeerURLs, " ")
	case m.IsLearner:
		return m.Name + ", learner"
	}
	return m.Name
}

func endpoints(ctx context.Context, cli *clientv3.Client, begun string) (found []string, _ bool, err error) {
	resp, err := cli.MemberList(ctx)
	if err != nil {
		return nil, false, err
	}
	for _, m := range resp.Members {
		for _, url := range m.ClientURLs {
			_, host, ok := strings.Cut(url, "://")
			switch {
			case strings.HasPrefix(url, begun):
				found = append(found, url+"\t"+about(m))
			case ok && strings.HasPrefix(host, begun):
				found = append(found, host+"\t"+about(m))
			}
		}
	}
	return found, false, nil
}

func users(ctx context.Context, cli *clientv3.Client, begun string) ([]string, bool, error) {
	resp, err := cli.UserList(ctx)
	if err != nil {
		return nil, false, err
	}
	return beginning(resp.Users, begun), false, nil
}

func roles(ctx context.Context, cli *clientv3.Client, begun string) ([]string, bool, error) {
	resp, err := cli.RoleList(ctx)
	if err != nil {
		return nil, false, err
	}
	return beginning(resp.Roles, begun), false, nil
}

func permissions(_ context.Context, _ *clientv3.Client, begun string) ([]string, bool, error) {
	return beginning([]string{"read", "write", "readwrite"}, begun), false, nil
}

func leases(ctx context.Context, cli *clientv3.Client, begun string) (found []string, _ bool, err error) {
	resp, err := cli.Leases(ctx)
	if err != nil {
		return nil, false, err
	}
	for _, l := range resp.Leases {
		if id := fmt.Sprintf("%016x", int64(l.ID)); strings.HasPrefix(id, begun) && len(found) < mostCandidates {
			found = append(found, id)
		}
	}
	return found, false, nil
}

// beginning are the plain names that begin so.
func beginning(names []string, begun string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !strings.HasPrefix(name, begun) || !plain(name) })
}
