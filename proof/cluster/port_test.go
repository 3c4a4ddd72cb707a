package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Processes that ask at the same time are given different ports: what they were given before they
// listen is nobody else's. (TestInteropEtcd once found another package's server on its port.)
func TestFreePortsOfManyProcesses(t *testing.T) {
	if file := os.Getenv("BELAY_PORTS_FILE"); file != "" {
		p := &ports{file: file}
		for range 50 {
			port, err := p.free(3)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Println("port", port)
		}
		return
	}
	file := filepath.Join(t.TempDir(), "ports")
	var children []*exec.Cmd
	var out [4]strings.Builder
	for i := range out {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFreePortsOfManyProcesses$")
		child.Env = append(os.Environ(), "BELAY_PORTS_FILE="+file)
		child.Stdout, child.Stderr = &out[i], &out[i]
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
	}
	taken := map[int]int{} // by which child
	for i, child := range children {
		if err := child.Wait(); err != nil {
			t.Fatalf("%v:\n%s", err, &out[i])
		}
		given := 0
		for line := range strings.Lines(out[i].String()) {
			var first int
			if _, err := fmt.Sscanf(line, "port %d", &first); err != nil {
				continue
			}
			given++
			for port := first; port < first+3; port++ {
				if other, ok := taken[port]; ok {
					t.Errorf("port %d was given to %d and to %d", port, other, i)
				}
				taken[port] = i
			}
		}
		if given != 50 {
			t.Errorf("%d was given ports %d times, want 50:\n%s", i, given, &out[i])
		}
	}
}
