package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// markerName is the file that makes a directory ours. It holds the layout, because members remember
// their peers' URLs: the same data cannot run with other ports or another number of members.
const markerName = "belay-dev.json"

// authoritiesName is the file with the certificates that members made for themselves.
const authoritiesName = "clients-ca.pem"

type marker struct {
	About       string `json:"about"`
	ClientPorts []int  `json:"clientPorts"`
	PeerPorts   []int  `json:"peerPorts"`
}

// A member is one process of the cluster as planned.
type member struct {
	name                 string
	clientPort, peerPort int
	dataDir              string
	clientScheme         string // http, https
	peerScheme           string
}

// client is the member's endpoint.
func (m member) client() string { return strings.TrimPrefix(m.clientURL(), "http://") }

func (m member) clientURL() string {
	return fmt.Sprintf("%s://127.0.0.1:%d", m.clientScheme, m.clientPort)
}

// peerAddress is where the others dial it.
func (m member) peerAddress() string { return fmt.Sprintf("127.0.0.1:%d", m.peerPort) }

func (m member) peerURL() string { return fmt.Sprintf("%s://127.0.0.1:%d", m.peerScheme, m.peerPort) }

// members plans the cluster: m1, m2, ...
func (o *Options) members() []member {
	var all []member
	for i := range o.Members {
		m := member{name: fmt.Sprintf("m%d", i+1), clientScheme: o.scheme(""), peerScheme: o.scheme("peer-")}
		switch {
		case o.BasePort != 0:
			m.clientPort, m.peerPort = o.BasePort+2*i, o.BasePort+2*i+1
		case i == 0:
			m.clientPort, m.peerPort = 2379, 2380
		default: // as in etcd's own examples
			m.clientPort, m.peerPort = 2379+10000*(i+1), 2380+10000*(i+1)
		}
		m.dataDir = filepath.Join(o.DataDir, m.name)
		all = append(all, m)
	}
	return all
}

// args are the arguments that start member i: those of `belay server`.
func (o *Options) args(members []member, i int) []string {
	m := members[i]
	var cluster []string
	for _, other := range members {
		cluster = append(cluster, other.name+"="+other.peerURL())
	}
	args := []string{
		"server",
		"--name=" + m.name,
		"--data-dir=" + m.dataDir,
		"--listen-client-urls=" + m.clientURL(),
		"--advertise-client-urls=" + m.clientURL(),
		"--listen-peer-urls=" + m.peerURL(),
		"--initial-advertise-peer-urls=" + m.peerURL(),
		"--initial-cluster=" + strings.Join(cluster, ","),
		"--initial-cluster-state=new",
		"--initial-cluster-token=belay-dev",
		"--log-format=console", // to be read by a human; behind a prefix it would not be JSON anyway
	}
	return append(args, o.ServerArgs...)
}

// environ is our environment for a member, without the ETCD_* variables for flags that it is
// started with: a member refuses to choose between the two.
func environ(args []string) []string {
	given := map[string]bool{}
	for _, arg := range args {
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		given["ETCD_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))] = true
	}
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return given[name]
	})
}

// prepare checks ports and data directory, and leaves the directory marked as ours.
func (o *Options) prepare(members []member) error {
	for _, m := range members {
		for _, p := range []struct {
			port int
			of   string
		}{{m.clientPort, "clients"}, {m.peerPort, "peers"}} {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
			if err != nil {
				return fmt.Errorf("port %d, for the %s of %s, cannot be used: %w\nIs another etcd, belay server or belay dev running? Stop it, or choose other ports with --base-port",
					p.port, p.of, m.name, err)
			}
			l.Close()
		}
	}

	path := filepath.Join(o.DataDir, markerName)
	found, err := readMarker(path)
	if err != nil {
		return err
	}
	if found == nil {
		entries, err := os.ReadDir(o.DataDir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot read the data directory: %w", err)
		}
		if len(entries) > 0 {
			return fmt.Errorf("%s holds files that no belay dev made (there is no %s): choose another --data-dir", o.DataDir, markerName)
		}
	}
	if found != nil && o.Clean {
		if err := clean(o.DataDir); err != nil {
			return fmt.Errorf("cannot clean the data directory: %w", err)
		}
		found = nil
	}

	want := marker{About: "A belay dev cluster lives here. This file lets --clean remove the directories m1, m2, ... beside it."}
	for _, m := range members {
		want.ClientPorts = append(want.ClientPorts, m.clientPort)
		want.PeerPorts = append(want.PeerPorts, m.peerPort)
	}
	if found != nil {
		if !slices.Equal(found.PeerPorts, want.PeerPorts) {
			return fmt.Errorf("%s holds a cluster of %d members with peer ports %v, not of %d with %v: give the flags it was made with, another --data-dir, or --clean to start afresh",
				o.DataDir, len(found.PeerPorts), found.PeerPorts, len(want.PeerPorts), want.PeerPorts)
		}
		return nil
	}
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the data directory: %w", err)
	}
	b, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot mark the data directory: %w", err)
	}
	return nil
}

// readMarker returns nil if there is none.
func readMarker(path string) (*marker, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the data directory: %w", err)
	}
	m := &marker{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): remove the directory by hand, or choose another --data-dir", path, err)
	}
	return m, nil
}

// clean removes the members' directories and the marker, and nothing that others may have put
// beside them. The marker goes last: until then another run can clean the rest.
func clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, controlName)); err != nil {
		return err
	}
	ours, files := regexp.MustCompile(`^m[1-9][0-9]*$`), regexp.MustCompile(`^(m[1-9][0-9]*\.log|clients-ca\.pem)$`)
	for _, e := range entries {
		if e.IsDir() && ours.MatchString(e.Name()) || e.Type().IsRegular() && files.MatchString(e.Name()) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(filepath.Join(dir, markerName))
}
