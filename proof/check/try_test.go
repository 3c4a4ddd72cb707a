package check

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// shown is what a program prints.
type shown struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *shown) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *shown) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await waits until a text was printed n times.
func (s *shown) await(t *testing.T, text string, n int) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); strings.Count(s.String(), text) < n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %d times %q in:\n%s", n, text, s)
		}
	}
}

// screen starts belay; its commands are written to stdin.
func screen(t *testing.T, env []string, args ...string) (cmd *exec.Cmd, stdin io.WriteCloser, out *shown, ended <-chan error) {
	t.Helper()
	out = &shown{}
	cmd = exec.Command(Belay(t), args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = out, out, env
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done, gone := make(chan error, 1), make(chan struct{})
	go func() { done <- cmd.Wait(); close(gone) }()
	t.Cleanup(func() {
		// It stops its members, which write to folders of the test until then; an error: it has ended.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-gone:
		case <-time.After(90 * time.Second):
			_ = cmd.Process.Kill()
			t.Errorf("goes on after SIGTERM:\n%s", out)
		}
	})
	return cmd, stdin, out, done
}

// basePort finds n ports in a row, which no other test gets.
func basePort(t *testing.T, n int) int {
	t.Helper()
	base, err := cluster.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// withoutClientVariables is our environment without what a client would take from it.
func withoutClientVariables() (env []string) {
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ETCD") {
			env = append(env, kv)
		}
	}
	return env
}

// tryLines are the commands that a program suggests: lines of a shell.
func tryLines(text string) (exports, commands []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		_, command, _ := strings.Cut(line, `"try": "`) // a member's log
		command, _, inLog := strings.Cut(command, `"}`)
		trimmed := strings.TrimPrefix(line, "  ")
		switch {
		case inLog:
			commands = append(commands, command)
		case trimmed == line: // not a line of its own
		case strings.HasPrefix(trimmed, "export "):
			exports = append(exports, trimmed)
		case strings.Contains(trimmed, " ctl "):
			commands = append(commands, trimmed)
		}
	}
	return exports, commands
}

// Each command that belay dev and its members suggest works when pasted: with the variables that
// dev says to export, with and without certificates.
func TestTryLines(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with a space")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	authority, err := cluster.NewAuthority(dir, "authority")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Issue("server", nil); err != nil {
		t.Fatal(err)
	}
	for name, flags := range map[string][]string{
		"plain":    nil,
		"auto-tls": {"--auto-tls", "--peer-auto-tls"},
		"certificates": {"--cert-file=" + authority.Cert("server"), "--key-file=" + authority.Key("server"),
			"--trusted-ca-file=" + authority.CA(), "--client-cert-auth"},
		"certificates of an unknown authority": {"--cert-file=" + authority.Cert("server"), "--key-file", authority.Key("server")},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"dev", "--members=2", fmt.Sprint("--base-port=", basePort(t, 4)), "--data-dir=" + filepath.Join(dir, name), "--"}
			_, _, out, _ := screen(t, withoutClientVariables(), append(args, flags...)...)
			out.await(t, "Ctrl-C stops all members", 1)
			out.await(t, `"try": "`, 2)
			exports, commands := tryLines(out.String())
			if len(exports) == 0 || len(commands) != 4 {
				t.Fatalf("told are %q and %q:\n%s", exports, commands, out)
			}
			run := func(lines ...string) {
				cmd := exec.Command("sh", "-e", "-c", strings.Join(lines, "\n"))
				cmd.Env = withoutClientVariables()
				if answer, err := cmd.CombinedOutput(); err != nil || bytes.Contains(answer, []byte("arning")) {
					t.Errorf("%s\n%v\n%s", strings.Join(lines, "\n"), err, answer)
				}
			}
			run(append(exports, commands...)...)
			for _, command := range commands {
				if strings.HasPrefix(command, "ETCDCTL_") { // a member's, which is a line of its own
					run(command)
				}
			}
		})
	}
}

// What one types restarts members of belay dev.
func TestDevCommands(t *testing.T) {
	_, stdin, out, ended := screen(t, withoutClientVariables(), "dev", "--members=3", fmt.Sprint("--base-port=", basePort(t, 6)),
		"--data-dir="+filepath.Join(t.TempDir(), "data"))
	out.await(t, "Ctrl-C stops all members", 1)
	typed := func(line string) {
		t.Helper()
		if _, err := fmt.Fprintln(stdin, line); err != nil {
			t.Fatal(err)
		}
	}
	typed("kill m2")
	out.await(t, "m2 ended by signal 9", 1)
	typed("kill m2")
	out.await(t, "m2 does not run", 1)
	typed("start m2")
	out.await(t, "m2 serves again: m1 up, m2 up, m3 up", 1)
	typed("restart m1")
	out.await(t, "m1 serves again: m1 up, m2 up, m3 up", 1)
	typed("stop m3")
	out.await(t, "m3 has stopped", 1)
	typed("nonsense")
	out.await(t, "is no command", 1)
	typed("stop m9")
	out.await(t, "which member?", 1)
	typed("status")
	out.await(t, "m3  does not run", 1)
	typed("quit")
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
	case <-time.After(90 * time.Second):
		t.Fatalf("does not end:\n%s", out)
	}
}

// dev and server end at the first SIGINT or SIGTERM, whenever it comes: before they serve, too.
// (Commands of ctl and util: ctl.TestFirstSignalEnds.)
func TestServersEndAtTheFirstSignal(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		for _, command := range []string{"server", "server that waits for the others", "dev"} {
			for _, early := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s %v early=%v", command, sig, early), func(t *testing.T) {
					base := basePort(t, 6)
					name, _, waits := strings.Cut(command, " ")
					dir := "--data-dir=" + filepath.Join(t.TempDir(), "data")
					args := []string{name, dir, fmt.Sprint("--base-port=", base)}
					ready := "Ctrl-C stops all members"
					if name == "server" {
						ready = "ready to serve client requests"
						client, peer := fmt.Sprintf("http://127.0.0.1:%d", base), fmt.Sprintf("http://127.0.0.1:%d", base+1)
						args = []string{name, dir, "--name=one", "--listen-client-urls=" + client, "--advertise-client-urls=" + client,
							"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=one=" + peer}
						if waits {
							args[len(args)-1] += fmt.Sprintf(",two=http://127.0.0.1:%d", base+2)
							ready = "still waiting for a leader"
						}
					}
					cmd, _, out, ended := screen(t, withoutClientVariables(), args...)
					if early {
						out.await(t, "Running: ", 1)
					} else {
						out.await(t, ready, 1)
					}
					if err := cmd.Process.Signal(sig); err != nil {
						t.Fatal(err)
					}
					select {
					case <-ended:
					case <-time.After(90 * time.Second):
						_ = cmd.Process.Kill()
						t.Fatalf("goes on after %v:\n%s", sig, out)
					}
				})
			}
		}
	}
}
