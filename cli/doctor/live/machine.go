package live

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/belaydb/belay/cli/connect"
)

// A Machine is what the machine here tells of its CPUs. Members on it wait for them, too, and what a
// member measures as the time of its disk or of a link has that waiting in it.
type Machine struct {
	Known   bool
	Waiting float64 // part of the last 10 s in which somebody waited for a CPU, of 1
}

// enough is the part of the time from which on CPUs are short.
const enough = 0.25

// here asks the machine; on anything but Linux with pressure information it knows nothing.
func here() (m Machine) {
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return m
	}
	return pressure(string(text))
}

// pressure reads /proc/pressure/cpu: "some avg10=31.20 avg60=...".
func pressure(text string) (m Machine) {
	first, _, _ := strings.Cut(text, "\n")
	for _, field := range strings.Fields(first) {
		if value, ok := strings.CutPrefix(field, "avg10="); ok {
			if percent, err := strconv.ParseFloat(value, 64); err == nil {
				return Machine{Known: true, Waiting: percent / 100}
			}
		}
	}
	return m
}

// Short says that the machine here has no CPU to spare, so that times that are measured on it have
// waiting for one in them; empty: it has, or does not tell.
func Short() string {
	if m := here(); m.Known && m.Waiting >= enough {
		return fmt.Sprintf("this machine is short of CPU: in %s of the last 10 s somebody waited for one, which is in these times", share(m.Waiting, 1))
	}
	return ""
}

// onThisMachine tells whether an endpoint's host is an address of this machine.
func onThisMachine(endpoint string) bool {
	host, _, err := net.SplitHostPort(hostOf(endpoint))
	return err == nil && connect.OwnAddress(host)
}

// noCPU is the evidence that a member's machine has no CPU to spare, so that what it takes to be a
// slow disk or link may be waiting for one: the end of a line; empty: nothing is known of that.
func (c *Cluster) noCPU(m *Member) string {
	if !m.Here || !c.Machine.Known || c.Machine.Waiting < enough {
		return ""
	}
	return fmt.Sprintf(", on this machine, which is short of CPU: in %s of the last 10 s somebody waited for one", share(c.Machine.Waiting, 1))
}
