//go:build unix

package interrupt

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"testing"
)

const childVariable = "BELAY_TEST_RAISE"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	_, _ = os.Stdout.WriteString("ready\n")
	Raise(<-signals)
}

// TestRaiseInAFlood wants a process to end by its signal, however often that is sent meanwhile.
func TestRaiseInAFlood(t *testing.T) {
	t.Parallel()
	for range 20 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childVariable+"=1")
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		var senders sync.WaitGroup
		for range 4 {
			senders.Go(func() {
				for {
					select {
					case <-ended:
						return
					default:
						_ = child.Process.Signal(syscall.SIGTERM) // it may be gone already
					}
				}
			})
		}
		err = child.Wait()
		close(ended)
		senders.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
			t.Fatalf("it ended with %v, not by the signal", err)
		}
	}
}
