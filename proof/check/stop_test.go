package check

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// TestStop wants an orderly end from SIGTERM, also when it comes twice at once, as timeout(1) and
// some supervisors send it: to the process and again to its group.
func TestStop(t *testing.T) {
	for name, last := range map[string]time.Duration{"one signal": 0, "the same signal again and again": 200 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			m := startCluster(t, cluster.Config{Kind: checkKind(t), Size: 1}).Members[0]
			if err := m.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			for start := time.Now(); time.Since(start) < last; {
				_ = m.Signal(syscall.SIGTERM) // it may be gone already
			}
			ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
			defer cancel()
			select {
			case <-m.Exited():
			case <-ctx.Done():
				t.Fatalf("the member still runs:\n%s", m.LogTail(10))
			}
			// As etcd: the process ends by the signal that it got.
			exit, ok := m.ExitErr().(*exec.ExitError)
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
				t.Errorf("it ended with %v, not by the signal", m.ExitErr())
			}
			const closed = "closed etcd server"
			if log := m.LogTail(5); !strings.Contains(log, closed) {
				t.Errorf("the log does not say %q:\n%s", closed, log)
			}
		})
	}
}
