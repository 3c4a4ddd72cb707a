package backup

import (
	"fmt"
	"time"

	"github.com/belaydb/belay/internal/show"
)

// A Listed is an entry of a catalog as it is shown, and as JSON.
type Listed struct {
	Name     string    `json:"name"`
	State    State     `json:"state"`
	Error    string    `json:"error,omitempty"` // why the state is no better
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind,omitempty"` // of what has a manifest, as all that follows
	Revision int64     `json:"revision,omitempty"`
	After    int64     `json:"after,omitempty"`
	Parent   string    `json:"parent,omitempty"`
	Member   string    `json:"member,omitempty"` // that made it
	Bytes    int64     `json:"bytes,omitempty"`
	Versions int64     `json:"versions,omitempty"`
	HashKV   *uint32   `json:"hashKV,omitempty"`
}

// Listing is a catalog to be shown, oldest first.
func Listing(c *Catalog) []Listed {
	list := make([]Listed, 0, len(c.Entries))
	for _, e := range c.Entries {
		l := Listed{Name: e.Name, State: e.State}
		l.Time, _ = timeOf(e.Name)
		if e.Err != nil {
			l.Error = e.Err.Error()
		}
		if m := e.Manifest; m != nil {
			l.Time, l.Kind, l.Revision, l.After, l.Parent, l.Member = m.Time, m.Kind, m.Revision, m.After, m.Parent, m.Member
			l.Bytes, l.Versions, l.HashKV = m.bytes(), m.Versions, m.Hash
		}
		list = append(list, l)
	}
	return list
}

// Columns are the heads of what Row gives.
func Columns() []string { return []string{"TIME", "KIND", "REVISION", "SIZE", "STATE", "NAME"} }

// Row is an entry as the row of a table for people.
func (l Listed) Row() []string {
	rev, size := "", ""
	if l.Kind != "" {
		rev, size = fmt.Sprint(l.Revision), show.Bytes(l.Bytes)
	}
	return []string{l.Time.Local().Format("2006-01-02 15:04:05"), l.Kind, rev, size, string(l.State), l.Name}
}
