package clients

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestBenchmark runs every sub-command of etcd's own benchmark tool that talks
// to a server (mvcc does not), small, to see that each comes to its end
// without an error. For figures see the folder bench.
func TestBenchmark(t *testing.T) {
	wantAll(t)
	program := builtFrom(t, "benchmark", "go.etcd.io/etcd/v3/tools/benchmark", "benchmark")
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d", size), func(t *testing.T) {
			cl := start(t, checkKind(t), size)
			for _, line := range []string{
				"put --total=3000 --val-size=256 --key-space-size=1000 --sequential-keys --check-hashkv",
				"put --total=2000 --val-size=256 --key-space-size=1000 --compact-interval=200ms --compact-index-delta=100 --rate=4000",
				"range a --total=3000 --consistency=l",
				"range a z --total=1000 --consistency=s --limit=100",
				"range a --total=500 --count-only",
				"txn-put --total=1000 --txn-ops=8 --key-space-size=1000 --val-size=64",
				"txn-mixed --total=1000 --rw-ratio=2 --key-space-size=1000 --limit=10",
				"stm --total=300 --keys=20 --keys-per-txn=3 --isolation=c",
				"stm --total=300 --keys=20 --keys-per-txn=3 --isolation=r",
				"stm --total=300 --keys=20 --keys-per-txn=3 --isolation=s",
				"stm --total=300 --keys=20 --keys-per-txn=3 --isolation=ss",
				"stm --total=100 --keys=20 --stm-locker=lock-client",
				"stm --total=100 --keys=20 --stm-locker=lock-rpc",
				"lease-keepalive --total=2000",
				"watch --streams=5 --watch-per-stream=20 --watched-key-total=10 --put-total=300",
				"watch-get --watchers=200 --events=4",
				"watch-latency --streams=5 --watchers-per-stream=5 --put-total=200 --put-rate=200 --prevkv",
			} {
				name, _, _ := strings.Cut(line, " --")
				args := append([]string{"--endpoints=" + strings.Join(cl.Endpoints(), ","), "--conns=4", "--clients=8"}, strings.Fields(line)...)
				stdout, stderr, err := run(t, time.Minute, exec.Command(program, args...))
				rates := regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`).FindAllStringSubmatch(stdout, -1)
				if err != nil || len(rates) == 0 || strings.Contains(stdout, "Error distribution") {
					t.Errorf("benchmark %s: %v\n%s%s", line, err, stdout, stderr)
					continue
				}
				t.Logf("%s: %s/s", name, rates[0][1])
			}
		})
	}
}
