package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// authCommandLines are run one after the other. What follows <<< is standard input; \n in it ends a
// line. A line that begins with = sets ETCDCTL_ variables for the next ones.
const authCommandLines = `
auth status
auth enable
auth enable extra
user add
user add int <<< pw\npw\n
user add int2 <<< pw\nother\n
user add int2 <<< \n
user add int2
user passwd int <<<   pw2  \npw2\n
user passwd int <<< a\nb\n
user add root:rootpw
user add root:again
user add bob --interactive=false <<< bobpw\n
user add dan --new-user-password danpw
user add dan:x --new-user-password danpw
user add carol --no-password
user add carol:x --no-password
user add eve --no-password --new-user-password x
user add :x
user add empty:
user add a:b:c
user add sue --interactive=false
user list
user list extra
user list -w json
user get bob
user get bob --detail
user get missing
user get
role add
role add r1
role add r1
role add r2 r3
role list
role grant-permission r1 read
role grant-permission r1 read foo
role grant-permission r1 write foo fop
role grant-permission r1 readwrite dir/ --prefix
role grant-permission r1 read z --from-key
role grant-permission r1 read "" --prefix
role grant-permission r1 read "" --from-key
role grant-permission r1 read --prefix
role grant-permission r1 read a b --prefix
role grant-permission r1 read a b --from-key
role grant-permission r1 read a --prefix --from-key
role grant-permission r1 nonsense foo
role grant-permission r1 READ foo2
role grant-permission r1 read b a
role grant-permission missing read foo
role get r1
role get missing
role get
role get r1 -w json
role get r1 -w fields
role get r1 -w table
role get root
role revoke-permission r1 foo
role revoke-permission r1 foo
role revoke-permission r1 foo fop
role revoke-permission r1 z --from-key
role revoke-permission r1 dir/ --prefix
role revoke-permission r1 a b --prefix
role revoke-permission r1 a b --from-key
role revoke-permission r1
role get r1
role grant-permission r1 readwrite dir/ --prefix
role grant-permission r1 read one
user grant-role bob r1
user grant-role bob r1
user grant-role bob missing
user grant-role missing r1
user grant-role bob
user get bob
user get bob --detail
user get bob -w json
user grant-role carol r1
user passwd bob --interactive=false <<< bobpw2\n
user passwd missing --interactive=false <<< x\n
user passwd
auth enable
auth status
user get root
--user root:rootpw auth status
--user root:rootpw auth enable
--user root:rootpw put secret 1
--user root:rootpw put dir/a 1
--user root:wrong get secret
--user missing:x get secret
--user carol:x get dir/a
--user carol get dir/a <<< x\n
--user root --password rootpw get secret
--user root:x --password rootpw get secret
--user root get secret <<< rootpw\n
--user root put secret <<< rootpw\nthe value\n
--user root get secret
--user root:rootpw get secret
--user int get secret <<< pw2\n
--password rootpw get secret
--user :x get secret
get secret
--user bob:bobpw get dir/a
--user bob:bobpw2 get dir/a
--user bob:bobpw2 get dir/ --prefix
--user bob:bobpw2 get dir/ --from-key
--user bob:bobpw2 get secret
--user bob:bobpw2 get one
--user bob:bobpw2 put one 2
--user bob:bobpw2 put dir/b 2 --prev-kv
--user bob:bobpw2 del dir/ --prefix --prev-kv
--user bob:bobpw2 del "" --prefix
--user bob:bobpw2 txn <<< value("secret") = "1"\n\nget dir/a\n\nput dir/c 1\n\n
--user bob:bobpw2 txn <<< value("dir/a") = "1"\n\nget dir/a\n\nput dir/c 1\n\n
--user bob:bobpw2 lease list
--user bob:bobpw2 member list
--user bob:bobpw2 member add x --peer-urls=http://127.0.0.1:1
--user bob:bobpw2 endpoint status -w fields
--user bob:bobpw2 endpoint hashkv
--user bob:bobpw2 alarm list
--user bob:bobpw2 alarm disarm
--user bob:bobpw2 defrag
--user bob:bobpw2 compact 2
--user bob:bobpw2 snapshot save /nonexistent/x
--user bob:bobpw2 user list
--user bob:bobpw2 user get bob
--user bob:bobpw2 user get bob --detail
--user bob:bobpw2 user get root
--user bob:bobpw2 role get r1
--user bob:bobpw2 role get root
--user bob:bobpw2 role list
--user bob:bobpw2 user passwd bob --interactive=false <<< y\n
--user bob:bobpw2 user add x:y
--user bob:bobpw2 auth disable
--user bob:bobpw2 elect e v
--user bob:bobpw2 endpoint health
endpoint health
--user root:rootpw endpoint health
=ETCDCTL_USER=root:rootpw
get secret
user list
user revoke-role bob r1
user revoke-role bob r1
user revoke-role missing r1
user revoke-role root root
user revoke-role bob
role delete root
role delete r1
role delete r1
role delete
user get carol
user delete root
user delete bob
user delete bob
user delete
auth disable extra
auth disable
auth status
=ETCDCTL_USER=
get secret
auth disable
`

// TestAuthCommandLines runs them by etcdctl against etcd, by etcdctl against Belay and by belay ctl
// against Belay: the same output, the same last error and the same exit code.
func TestAuthCommandLines(t *testing.T) {
	t.Parallel()
	belay, etcdctl := Belay(t), EtcdTools(t).Etcdctl
	var results [3][]string
	var lines []string
	for line := range strings.Lines(authCommandLines) {
		if line = strings.TrimSuffix(line, "\n"); line != "" {
			lines = append(lines, line)
		}
	}
	names := [3]string{"etcdctl on etcd", "etcdctl on belay", "belay ctl on belay"}
	var running sync.WaitGroup
	for i, program := range [3][]string{{etcdctl}, {etcdctl}, {belay, "ctl"}} {
		kind := cluster.Belay
		if i == 0 {
			kind = cluster.Etcd
		}
		c := startCluster(t, cluster.Config{Kind: kind, Size: 1, Args: []string{"--bcrypt-cost=4", "--unsafe-no-fsync"}}) // etcdctl waits 2 s for a login, which is a write
		running.Go(func() {
			var env []string
			for _, line := range lines {
				if set, ok := strings.CutPrefix(line, "="); ok {
					env = []string{set}
					results[i] = append(results[i], "")
					continue
				}
				results[i] = append(results[i], runLine(t, append(program, "--endpoints="+c.Members[0].ClientURL), env, line))
			}
		})
	}
	running.Wait()
	for n, line := range lines {
		if os.Getenv("BELAY_CHECK_TRACE") != "" {
			t.Logf("%s: %s", line, results[0][n])
		}
		for i := 1; i < 3; i++ {
			if results[i][n] != results[0][n] {
				t.Errorf("%s\n--- %s: %s\n--- %s: %s", line, names[0], results[0][n], names[i], results[i][n])
			}
		}
	}
	if n := slices.Index(lines, "get secret"); !strings.Contains(results[0][n], "user name is empty") {
		t.Errorf("authentication is not on: %s", results[0][n])
	}
	t.Logf("%d command lines", len(lines))
}

var (
	wordOf   = regexp.MustCompile(`"[^"]*"|\S+`)
	ctlNumbs = regexp.MustCompile(`(took = |"(?:ID|MemberID|ClusterID|Leader|RaftIndex|RaftTerm|RaftAppliedIndex|DBSize|DBSizeInUse|DbSize|DbSizeInUse)" ?: |"(?:cluster_id|member_id|raft_term)":)[0-9a-z.µ]+`)
	ctlIDs   = regexp.MustCompile(`\b[0-9a-f]{13,16}\b|127\.0\.0\.1:\d+`)
)

// runLine returns standard output, the lines of standard error that begin with Error, and the exit
// code.
func runLine(t *testing.T, program, env []string, line string) string {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	words, input, _ := strings.Cut(line, "<<<")
	args := program[1:]
	for _, w := range wordOf.FindAllString(words, -1) {
		args = append(args, strings.Trim(w, `"`))
	}
	cmd := exec.CommandContext(ctx, program[0], args...)
	cmd.Env = append(cmd.Environ(), env...)
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(strings.TrimPrefix(input, " "), `\n`, "\n"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Errorf("%s: %v", line, err)
	}
	text := out.String()
	for l := range strings.Lines(errs.String()) {
		if strings.HasPrefix(l, "Error") {
			text += l
		}
	}
	text = ctlIDs.ReplaceAllString(ctlNumbs.ReplaceAllString(text, "${1}N"), "X")
	return fmt.Sprintf("exit code %d\n%s", cmd.ProcessState.ExitCode(), text)
}
