package check

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belaydb/belay/proof/cluster"
)

// terminal is a pseudo terminal, and what was written to it.
type terminal struct {
	master, slave *os.File

	mu   sync.Mutex
	seen bytes.Buffer
}

func openTerminal(t *testing.T, rows, columns uint16) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminal: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	term := &terminal{master: master, slave: slave}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			term.mu.Lock()
			term.seen.Write(b[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

func (term *terminal) shows(text string) bool {
	term.mu.Lock()
	defer term.mu.Unlock()
	return strings.Contains(term.seen.String(), text)
}

// TestTop: belay ctl top on a real terminal shows the members and takes keys; without a terminal it
// prints one page, or JSON, and ends.
func TestTop(t *testing.T) {
	t.Parallel()
	for _, kind := range []cluster.Kind{cluster.Belay, cluster.Etcd} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, cluster.Config{Kind: kind, Size: 1})
			bin := Belay(t)
			at := "--endpoints=" + strings.Join(c.Endpoints(), ",")
			for i := range 20 {
				if out, err := exec.CommandContext(t.Context(), bin, "ctl", at, "put", fmt.Sprintf("/fruit/pears/%d", i), "x").CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			out, err := exec.CommandContext(t.Context(), bin, "ctl", at, "top", "-w", "json", "--every=200ms").CombinedOutput()
			var p struct {
				Leader  string `json:"leader"`
				Members []struct {
					Size int64 `json:"db_bytes"`
				} `json:"members"`
			}
			if err != nil || json.Unmarshal(out, &p) != nil || p.Leader == "" || len(p.Members) != 1 || p.Members[0].Size == 0 {
				t.Errorf("%v: %s", err, out)
			}

			term := openTerminal(t, 24, 80)
			cmd := exec.CommandContext(t.Context(), bin, "ctl", at, "top", "--every=200ms")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = term.slave, term.slave, term.slave
			cmd.Env = append(os.Environ(), "TERM=xterm-256color")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			until := func(what string, holds func() bool) {
				t.Helper()
				for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(20 * time.Millisecond) {
					if time.Now().After(deadline) {
						term.mu.Lock()
						defer term.mu.Unlock()
						t.Fatalf("%s did not come: %q", what, term.seen.String())
					}
				}
			}
			until("the leader", func() bool { return term.shows("leader " + p.Leader) })
			if kind == cluster.Belay {
				until("who uses it", func() bool { return term.shows("/fruit/pears/") })
			}
			if _, err := term.master.WriteString("?"); err != nil {
				t.Fatal(err)
			}
			until("help", func() bool { return term.shows("ctrl-c") })
			if _, err := term.master.WriteString("q"); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("it ends with %v", err)
				}
			case <-time.After(time.Minute):
				t.Error("q does not end it")
			}
		})
	}
}
