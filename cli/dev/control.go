package dev

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Another terminal gives commands over a unix socket in the data directory: one request, a line of
// JSON, and one answer for each connection. The folder around it is the user's alone.
const (
	controlName = "control"
	socketName  = "socket"
)

const (
	// longestSocket is how long a path of a socket may be; Linux has room for 107 bytes, others for
	// 103.
	longestSocket = 100
	answerTime    = 30 * time.Second // for an answer: starting a member or asking who leads takes a moment
	maxRequest    = 64 << 10
)

// A request is a command from another terminal.
type request struct {
	Words   []string `json:"words"`
	Columns int      `json:"columns"` // of the terminal that shows the answer

	answer chan reply
}

type reply struct {
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

// socketPath is what to call the socket in dir. A path that is too long for a socket is written
// through an open folder, where the system has such paths; done ends that.
func socketPath(dir string) (path string, done func(), err error) {
	folder := filepath.Join(dir, controlName)
	path = filepath.Join(folder, socketName)
	if len(path) <= longestSocket {
		return path, func() {}, nil
	}
	if runtime.GOOS != "linux" {
		return "", nil, fmt.Errorf("%s is too long for the path of a socket: choose a shorter --data-dir", path)
	}
	f, err := os.Open(folder)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), socketName), func() { f.Close() }, nil
}

// listenForRequests opens the socket. The ports are ours already, so one that is there is left over.
func listenForRequests(dir string) (net.Listener, error) {
	folder := filepath.Join(dir, controlName)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make a folder for commands: %w", err)
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		return nil, fmt.Errorf("cannot keep others from giving commands: %w", err)
	}
	path, done, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot listen for commands: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for commands: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // by that path it may not be reached any more
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("cannot keep others from giving commands: %w", err)
	}
	return l, nil
}

// answer takes requests until the socket is closed.
func (c *cluster) answer(door net.Listener) {
	for {
		conn, err := door.Accept()
		if err != nil {
			return
		}
		go c.serve(conn)
	}
}

func (c *cluster) serve(conn net.Conn) {
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(answerTime)) != nil {
		return
	}
	r := &request{answer: make(chan reply, 1)}
	if err := json.NewDecoder(io.LimitReader(conn, maxRequest)).Decode(r); err != nil {
		return
	}
	select {
	case c.requests <- r:
	case <-c.ctx.Done():
		return
	}
	select {
	case a := <-r.answer:
		_ = json.NewEncoder(conn).Encode(a) // who asked may be gone
	case <-c.ctx.Done():
	}
}

// request does what another terminal asks for, and says here that it did.
func (c *cluster) request(r *request) {
	line := strings.Join(r.Words, " ")
	if len(r.Words) == 0 || r.Words[0] == "quit" || r.Words[0] == "exit" || r.Words[0] == "q" {
		r.answer <- reply{Text: "Ctrl-C where belay dev runs stops it"}
		return
	}
	c.say("from another terminal: %s", line)
	c.reply, c.replyColumns = &strings.Builder{}, r.Columns
	_, err := c.command(r.Words)
	a := reply{OK: err == nil, Text: c.reply.String()}
	c.reply = nil
	if err != nil {
		c.say("%v", err)
		a.Text = err.Error() + "\n"
	}
	r.answer <- a
}

const faultUsage = `belay dev fault breaks what a cluster of "belay dev" stands on, from another terminal, and undoes it.

Usage:
  belay dev fault [--data-dir DIR] COMMAND

Commands:
` + help + `

Flags:
  --data-dir DIR    that of the cluster (default belay-dev)
`

// faultMain runs `belay dev fault` and returns the exit code: 0 when it was done, 1 when it could not
// be, 2 for flags that make no sense.
func faultMain(args []string, stdout, stderr io.Writer) int {
	var dir string
	fs := flag.NewFlagSet("belay dev fault", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&dir, "data-dir", defaultDataDir, "")
	err := fs.Parse(dirFirst(args))
	switch {
	case errors.Is(err, flag.ErrHelp), err == nil && fs.NArg() == 1 && fs.Arg(0) == "help":
		fmt.Fprint(stdout, faultUsage)
		return 0
	case err == nil && fs.NArg() == 0:
		err = errors.New("which fault? As in: belay dev fault partition leader for 10s")
	}
	if err != nil {
		fmt.Fprintf(stderr, "belay dev fault: %v\nRun 'belay dev fault --help' for usage.\n", err)
		return 2
	}
	a, err := ask(dir, request{Words: fs.Args(), Columns: columns(stdout)})
	if err != nil {
		fmt.Fprintf(stderr, "belay dev fault: %v\n", err)
		return 1
	}
	if !a.OK {
		fmt.Fprintf(stderr, "belay dev fault: %s\n", strings.TrimRight(a.Text, "\n"))
		return 1
	}
	fmt.Fprint(stdout, a.Text)
	return 0
}

// dirFirst puts --data-dir in front of the fault, behind which it may stand, too.
func dirFirst(args []string) []string {
	for i, arg := range args {
		name, _, joined := strings.Cut(arg, "=")
		if i == 0 || name != "--data-dir" && name != "-data-dir" {
			continue
		}
		n := 2
		if joined {
			n = 1
		}
		if i+n > len(args) {
			break
		}
		return slices.Concat(args[i:i+n], args[:i], args[i+n:])
	}
	return args
}

// ask has the belay dev of a data directory do something.
func ask(dir string, r request) (a reply, err error) {
	found, err := readMarker(filepath.Join(dir, markerName))
	if err != nil {
		return a, err
	}
	if found == nil {
		return a, fmt.Errorf("%s holds no cluster of belay dev: start one, or name its directory by --data-dir", dir)
	}
	path, done, err := socketPath(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return a, fmt.Errorf("no belay dev runs in %s", dir)
	}
	if err != nil {
		return a, err
	}
	defer done()
	conn, err := (&net.Dialer{Timeout: answerTime}).DialContext(context.Background(), "unix", path)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return a, fmt.Errorf("no belay dev runs in %s", dir)
	case err != nil:
		return a, fmt.Errorf("cannot reach the belay dev in %s: %w", dir, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return a, err
	}
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return a, fmt.Errorf("cannot reach the belay dev in %s: %w", dir, err)
	}
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return a, fmt.Errorf("the belay dev in %s gives no answer: %w", dir, err)
	}
	return a, nil
}
