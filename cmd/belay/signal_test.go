//go:build unix

package main

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLogReaderGone: a member whose log nobody reads any more goes on, and ends by the signal.
func TestLogReaderGone(t *testing.T) {
	t.Parallel()
	client, peer := freeURL(), freeURL()
	cmd := exec.Command(must(os.Executable()), "server", "--data-dir="+filepath.Join(t.TempDir(), "data"), "--initial-cluster=default="+peer,
		"--listen-client-urls="+client, "--advertise-client-urls="+client, "--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer)
	cmd.Env = append(os.Environ(), mainVariable+"=1")
	said := must(cmd.StderrPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	for lines := bufio.NewScanner(said); lines.Scan() && !strings.Contains(lines.Text(), "ready to serve client requests"); {
	}
	said.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil { // of which it logs some lines
		t.Fatal(err)
	}
	err := cmd.Wait()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v, want the signal's end", err)
	}
}

// freeURL is one that nobody listens on.
func freeURL() string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	return "http://" + l.Addr().String()
}

// TestSignalWhileItWaits: a member that waits for a discovery service to answer, or for the others to
// register there, ends by the first signal, in order.
func TestSignalWhileItWaits(t *testing.T) {
	t.Parallel()
	silent := must(net.Listen("tcp", "127.0.0.1:0")) // takes connections, says nothing
	defer silent.Close()
	client, peer, dir := freeURL(), freeURL(), t.TempDir()
	cmd := exec.Command(must(os.Executable()), "server", "--data-dir="+filepath.Join(dir, "data"),
		"--listen-client-urls="+client, "--advertise-client-urls="+client, "--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
		"--discovery-token=x", "--discovery-endpoints=http://"+silent.Addr().String())
	cmd.Env = append(os.Environ(), mainVariable+"=1")
	said := must(cmd.StderrPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	var log strings.Builder
	told := make(chan struct{})
	go func() {
		defer close(told)
		waits := false
		for lines := bufio.NewScanner(said); lines.Scan(); {
			log.WriteString(lines.Text() + "\n")
			if !waits && strings.Contains(lines.Text(), "Bootstrapping cluster using v3 discovery.") {
				waits = true
				_ = cmd.Process.Signal(syscall.SIGTERM)
			}
		}
	}()
	late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	<-told
	err := cmd.Wait()
	late.Stop()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM || !strings.Contains(log.String(), "received signal; shutting down") {
		t.Errorf("ended with %v, want the signal's end:\n%s", err, &log)
	}
}
