//go:build unix

package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestDenied runs itself as a user who may not read the files, as a member that was started as root
// once is started as its service's user.
func TestDenied(t *testing.T) {
	const variable = "BELAY_TEST_DENIED"
	if path := os.Getenv(variable); path != "" {
		_, err := os.ReadFile(path)
		if err == nil {
			err = os.Remove(path)
		}
		if err == nil { // as a security module denies it
			err = &fs.PathError{Op: "open", Path: path, Err: syscall.EACCES}
		}
		fmt.Println(Denied(fmt.Errorf("store: read: %w", err)))
		return
	}
	for _, err := range []error{errors.New("other"), &fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}} {
		if got := Denied(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	dir, err := os.MkdirTemp("", "denied") // a folder of the test has others in its way
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := filepath.Join(dir, "program")
	text, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(program, text, 0o755)
	}
	closed, own, listed, open := filepath.Join(dir, "closed"), filepath.Join(dir, "own"), filepath.Join(dir, "listed"), filepath.Join(dir, "open")
	for _, folder := range []string{closed, own, listed, open} {
		if err == nil {
			err = os.Mkdir(folder, 0o700)
		}
	}
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.Chown(own, 65534, 65534), os.Chmod(own, 0o200), os.Chown(open, 65534, 65534), os.Chmod(listed, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{listed, open} {
		file := filepath.Join(folder, "file")
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chown(file, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
	}
	for path, wants := range map[string][]string{
		filepath.Join(closed, "file"): {"store: read: open " + closed + "/file: permission denied", "runs as", "uid 65534", closed + " belongs to", "uid 0", "mode 0700", "chown -R"},
		filepath.Join(own, "file"):    {"permission denied", own + " has mode 0200", "chmod u+rwX"},
		filepath.Join(listed, "file"): {"remove " + listed + "/file: permission denied", listed + " belongs to", "uid 0", "mode 0755"},
		filepath.Join(open, "file"):   {"open " + open + "/file: permission denied\n"},
	} {
		cmd := exec.Command(program, "-test.run", "^TestDenied$")
		cmd.Env = append(os.Environ(), variable+"="+path)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, want := range wants {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s\nlacks %q", out, want)
			}
		}
	}
}
