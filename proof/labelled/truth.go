package main

import (
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// A Fault is one thing that was broken.
type Fault struct {
	Name     string    `json:"name"`
	Role     string    `json:"role"`              // of the first member when it began: leader, follower, all
	Members  []string  `json:"members,omitempty"` // at fault; of a link its two ends
	Severity float64   `json:"severity"`          // seconds; of loss the part that is lost
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended"`
}

// A Truth is what is known of one incident.
type Truth struct {
	Number  int          `json:"number"`
	Seed    uint64       `json:"seed"`
	Row     string       `json:"row,omitempty"` // of the table of sizes; "": drawn
	Kind    cluster.Kind `json:"kind"`
	Load    float64      `json:"writes_per_second"` // that clients asked for
	Faults  []Fault      `json:"faults"`            // none: a quiet time
	Began   time.Time    `json:"began"`
	Settled time.Time    `json:"settled"` // when what was said later is of the next incident
	Before  string       `json:"leader_before"`
	After   string       `json:"leader_after"`
	Terms   uint64       `json:"terms"`             // that began meanwhile
	Worst   float64      `json:"worst_request"`     // seconds, as clients saw it
	Failed  int          `json:"failed_requests"`   // of them
	Revived []string     `json:"revived,omitempty"` // members that ended because of the fault and were started again
	Machine float64      `json:"machine_load"`      // runnable processes of the machine at its end, a minute's mean
}

// incident is a Truth with where it lies.
type incident struct {
	Truth
	dir string
}

func (i *incident) life() string { return filepath.Dir(i.dir) }

// even says whether an incident is of the half that the product may be tuned on.
func (t *Truth) even() bool { return t.Number%2 == 0 }

// names are the names of the faults, "none" for a quiet time.
func (t *Truth) names() string {
	var names []string
	for _, f := range t.Faults {
		names = append(names, f.Name)
	}
	if names == nil {
		return quiet
	}
	return strings.Join(names, "+")
}

// load reads all incidents that are kept below dir, in the order of their numbers.
func load(dir string) (all []*incident, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*", "*", "truth.json"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		i := &incident{dir: filepath.Dir(path)}
		if err := json.Unmarshal(data, &i.Truth); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b *incident) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Number, b.Number))
	})
	return all, nil
}

// keep writes data, compressed if the path ends in .gz.
func keep(path string, data []byte) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if !strings.HasSuffix(path, ".gz") {
		_, err = f.Write(data)
		return err
	}
	z := gzip.NewWriter(f)
	_, err = z.Write(data)
	return errors.Join(err, z.Close())
}

// kept reads what keep wrote.
func kept(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return io.ReadAll(z)
}
