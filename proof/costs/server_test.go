package costs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/embed"
)

// The kinds of processes, by the environment variable with which this test program starts itself.
const (
	kindVariable = "BELAY_COSTS_SERVER"

	kindGRPC  = "grpc-go" // a member over grpc-go
	kindOwn   = "belay"   // a member over Belay's own gRPC server
	kindEmpty = "empty"   // a server of grpc-go that answers nothing
)

// spent is what a process has used up to now.
type spent struct {
	Begun   int64  // CPU time before the others were read, nanoseconds, the system's included
	CPU     int64  // and after
	Objects uint64 // allocated, of the heap
	Bytes   uint64 // in them
	Calls   uint64 // to read and write of the system
}

// since leaves out what reading them costs.
func (s spent) since(o spent) spent {
	return spent{0, s.Begun - o.CPU, s.Objects - o.Objects, s.Bytes - o.Bytes, s.Calls - o.Calls}
}

// A server is a process of this package.
type server struct {
	kind    string
	address string
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

func startServer(t *testing.T, kind string) *server {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{kind: kind, cmd: exec.Command(exe)}
	// A garbage collection costs by what lives, and comes by what is allocated. A process that does
	// little else has a small heap, so that the collector would run all the time.
	s.cmd.Env = append(os.Environ(), kindVariable+"="+kind, "GOMAXPROCS=1", "GOGC=400", "GODEBUG=")
	s.cmd.Stderr = os.Stderr
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.in.Close() // it ends then
		_ = s.cmd.Wait()
	})
	s.address = strings.TrimSpace(s.ask(t, ""))
	return s
}

// ask sends a line, if there is one, and returns the next one that the process says.
func (s *server) ask(t *testing.T, line string) string {
	t.Helper()
	if line != "" {
		if _, err := io.WriteString(s.in, line+"\n"); err != nil {
			t.Fatalf("the server over %s: %v", s.kind, err)
		}
	}
	answer, err := s.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the server over %s has ended: %v", s.kind, err)
	}
	return answer
}

func (s *server) spent(t *testing.T) (now spent) {
	t.Helper()
	if err := json.Unmarshal([]byte(s.ask(t, "spent")), &now); err != nil {
		t.Fatal(err)
	}
	return now
}

// TestMain serves, if it is told to, until its standard input ends.
func TestMain(m *testing.M) {
	kind := os.Getenv(kindVariable)
	if kind == "" {
		os.Exit(m.Run())
	}
	if err := serve(kind); err != nil {
		fmt.Fprintf(os.Stderr, "%s=%s: %v\n", kindVariable, kind, err)
		os.Exit(1)
	}
}

func serve(kind string) error {
	address := ""
	if kind == kindEmpty {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s := grpc.NewServer()
		pb.RegisterKVServer(s, emptyKV{})
		go func() { _ = s.Serve(l) }()
		address = l.Addr().String()
	} else {
		m, err := embed.Start(context.Background(), embed.Options{ClientURLs: []string{"http://127.0.0.1:0"}, Flags: []string{"--rpc-engine=" + kind}})
		if err != nil {
			return err
		}
		address = strings.TrimPrefix(m.Endpoints()[0], "http://")
	}
	fmt.Println(address)
	profile := ""
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch verb, path, _ := strings.Cut(lines.Text(), " "); verb {
		case "spent":
			now, err := spentHere()
			if err != nil {
				return err
			}
			text, err := json.Marshal(now)
			if err != nil {
				return err
			}
			fmt.Println(string(text))
		case "profile":
			f, err := os.Create(path + ".cpu")
			if err == nil {
				err = pprof.StartCPUProfile(f)
			}
			if err != nil {
				return err
			}
			profile = path
			fmt.Println("begun")
		case "write":
			pprof.StopCPUProfile()
			f, err := os.Create(profile + ".mem")
			if err == nil {
				runtime.GC()
				err = pprof.Lookup("allocs").WriteTo(f, 0)
			}
			if err != nil {
				return err
			}
			fmt.Println("written")
		}
	}
	return nil // the member's data is in memory and goes with it
}

func spentHere() (s spent, err error) {
	if s.Begun, err = cpuHere(); err != nil {
		return s, err
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	s.Objects, s.Bytes = mem.Mallocs, mem.TotalAlloc
	text, _ := os.ReadFile("/proc/self/io") // where there is none the calls are 0, on both sides
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if name == "syscr" || name == "syscw" {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return s, err
			}
			s.Calls += n
		}
	}
	s.CPU, err = cpuHere()
	return s, err
}

func cpuHere() (int64, error) {
	var usage syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return usage.Utime.Nano() + usage.Stime.Nano(), err
}

// emptyKV answers a put at once, with nothing.
type emptyKV struct{ pb.UnimplementedKVServer }

func (emptyKV) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) {
	return &pb.PutResponse{}, nil
}
