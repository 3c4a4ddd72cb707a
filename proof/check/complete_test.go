package check

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/proof/cluster"
)

// TestCompletion asks, as a shell does, for the cluster's own names: keys folder by folder, members,
// users, roles, leases, endpoints; and gets silence where the cluster does not answer.
func TestCompletion(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	m := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1, Args: []string{"--bcrypt-cost=4", "--unsafe-no-fsync"}}).Members[0]
	cl, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var puts []clientv3.Op
	for _, key := range []string{"app/a/1", "app/a/2", "app/b", "app/with space", "apple", "config"} {
		puts = append(puts, clientv3.OpPut(key, "v"))
	}
	for i := range 100 { // more than one request reads, all in one folder
		puts = append(puts, clientv3.OpPut("app/a/z"+strings.Repeat("z", i), "v"))
	}
	if _, err := cl.Txn(ctx).Then(puts...).Commit(); err != nil {
		t.Fatal(err)
	}
	lease, err := cl.Grant(ctx, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		second(cl.UserAdd(ctx, "root", "pw")), second(cl.UserAdd(ctx, "reader", "pw")), second(cl.RoleAdd(ctx, "viewers")),
		second(cl.UserGrantRole(ctx, "root", "root")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	complete := func(words ...string) string {
		t.Helper()
		words = append([]string{"__completeNoDesc", "ctl", "--endpoints=" + m.Endpoint()}, words...)
		cmd := exec.CommandContext(ctx, Belay(t), words...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if text := stderr.String(); strings.Contains(text, "Error") || strings.Contains(text, "Hint") {
			t.Errorf("%v prints %q", words, text)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	const noFiles, noSpace = ":4", ":6"
	// A busy machine may not answer in the second that a shell waits.
	expect := func(want string, words ...string) {
		t.Helper()
		for {
			got := complete(words...)
			if got == want {
				return
			}
			if got != noFiles || ctx.Err() != nil {
				t.Errorf("%q: %q, want %q", words, got, want)
				return
			}
		}
	}
	for _, c := range []struct{ words, want string }{
		{"get ", "app/ apple config " + noSpace},
		{"get app/", "app/a/ app/b " + noSpace},
		{"get app/a/1", "app/a/1 " + noFiles},
		{"del apple ", "app/ apple config " + noSpace}, // the end of the range
		{"put config ", noFiles},                       // a value is nobody's to guess
		{"get nothing", noFiles},
		{"user get r", "reader root " + noFiles},
		{"user grant-role reader ", "viewers " + noFiles},
		{"role get v", "viewers " + noFiles},
		{"role grant-permission viewers r", "read readwrite " + noFiles},
	} {
		expect(c.want, strings.Split(c.words, " ")...)
	}
	list, err := cl.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	expect(fmt.Sprintf("%x %s", list.Members[0].ID, noFiles), "move-leader", "")
	expect(fmt.Sprintf("%016x %s", int64(lease.ID), noFiles), "lease", "revoke", "")
	host := m.Endpoint()
	expect(host+" "+noSpace, "--endpoints", host[:len(host)-2])

	if _, err := cl.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
	if got := complete("--user=root", "get", "a"); got != noFiles { // it would have to ask for a password
		t.Errorf("with a user without a password: %q", got)
	}
	expect("apple "+noFiles, "--user=root:pw", "get", "appl")
	if got := complete("--user=reader:pw", "get", "a"); got != noFiles { // it may read nothing
		t.Errorf("as one who may not: %q", got)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := complete("--user=root:pw", "get", "a"); got != noFiles {
		t.Errorf("without a server: %q", got)
	}
}

// second is the error of a call that returns something too.
func second[T any](_ T, err error) error { return err }
