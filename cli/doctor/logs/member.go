package logs

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// names is what logs tell of which id has which name.
type names struct {
	byID  map[string]string
	byURL map[string]string   // peer URL: name, of --initial-cluster
	urls  map[string][]string // id: its peer URLs
}

func newNames() names {
	return names{byID: map[string]string{}, byURL: map[string]string{}, urls: map[string][]string{}}
}

var (
	rxAttributes = regexp.MustCompile(`Name:([^ }\]]{1,64})`)
	rxURLs       = regexp.MustCompile(`https?://[^\s",\]]{1,200}`)
	rxAdded      = regexp.MustCompile(`added member ` + hexID + ` \[(.*?)\]`)
	rxNamed      = regexp.MustCompile(`^etcdserver: (?:published \{Name:([^ }]{1,64})|name = (\S{1,64})$)`)
)

// maxNames bounds what is remembered.
const maxNames = 1024

func (n *names) learn(l *Line) {
	if len(n.byID) > maxNames || len(n.byURL) > maxNames || len(n.urls) > maxNames {
		return
	}
	put := func(id, name string) {
		if id = trimID(id); isID(id) && name != "" && len(name) <= 64 {
			n.byID[id] = name
		}
	}
	if f := l.Fields; f != nil {
		if m := rxAttributes.FindStringSubmatch(f["local-member-attributes"]); m != nil {
			put(f["local-member-id"], m[1])
		}
		for _, prefix := range []string{"remote-peer", "updated-remote-peer"} {
			put(f[prefix+"-id"], f[prefix+"-name"])
		}
		if l.Msg == "Belay listens" || l.Msg == "starting an etcd server" {
			put(firstField(l, "local-member-id", "member-id"), f["name"])
		}
		for _, pair := range [][2]string{{"added-peer-id", "added-peer-peer-urls"}, {"recovered-remote-peer-id", "recovered-remote-peer-urls"}, {"remote-peer-id", "remote-peer-urls"}} {
			// Most lines that name a peer do not tell its URLs.
			if urls := rxURLs.FindAllString(f[pair[1]], 8); len(urls) > 0 && isID(trimID(f[pair[0]])) {
				n.urls[trimID(f[pair[0]])] = urls
			}
		}
		n.cluster(f["initial-cluster"])
	}
	if strings.Contains(l.Msg, "initial cluster = ") {
		n.cluster(l.Msg[strings.Index(l.Msg, "initial cluster = ")+len("initial cluster = "):])
	}
	if m := rxAdded.FindStringSubmatch(l.Msg); m != nil {
		n.urls[trimID(m[1])] = rxURLs.FindAllString(m[2], 8)
	}
}

// nameOf is the name that a line tells of the member that writes it, in etcd's text form.
func nameOf(l *Line) string {
	if strings.HasPrefix(l.Msg, "etcdserver: ") {
		if m := rxNamed.FindStringSubmatch(l.Msg); m != nil {
			return m[1] + m[2]
		}
	}
	if l.Msg == "starting an etcd server" || l.Msg == "Belay listens" {
		return cut(l.Fields["name"], 64)
	}
	return ""
}

// cluster takes an --initial-cluster.
func (n *names) cluster(text string) {
	for pair := range strings.SplitSeq(text, ",") {
		if name, url, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && name != "" && len(name) <= 64 {
			n.byURL[url] = name
		}
	}
}

// of is the name of a member, or its id where no log tells the name.
func (n *names) of(id string) string {
	if name := n.byID[id]; name != "" {
		return name
	}
	for _, url := range n.urls[id] {
		if name := n.byURL[url]; name != "" {
			return name
		}
	}
	return id
}

// distinguish adds to a name that several ids have, as of other clusters or of a member that was
// replaced, which it is.
func (n *names) distinguish() {
	ids := map[string][]string{}
	for _, m := range []map[string]bool{keysOf(n.byID), keysOf(n.urls)} {
		for id := range m {
			if name := n.of(id); name != id && !slices.Contains(ids[name], id) {
				ids[name] = append(ids[name], id)
			}
		}
	}
	for name, same := range ids {
		for _, id := range same {
			n.byID[id] = name
			if len(same) > 1 {
				n.byID[id] = name + "/" + cut(id, 4)
			}
		}
	}
}

func keysOf[V any](m map[string]V) map[string]bool {
	set := make(map[string]bool, len(m))
	for k := range m {
		set[k] = true
	}
	return set
}

// title is what a stream is called if no line of it says: as the wrapping does, or the file.
func (s *stream) title() string {
	if s.from != "" {
		return s.from
	}
	name := strings.TrimSuffix(path.Base(strings.ReplaceAll(s.input, "\\", "/")), ".gz")
	for _, ext := range []string{".log", ".txt", ".json", ".export"} {
		name = strings.TrimSuffix(name, ext)
	}
	return name
}

// assign says of each event whose it is, and puts names for ids.
func (c *Collector) assign() {
	// The name of a stream none of whose lines tells an id.
	title := map[*stream]string{}
	for _, s := range c.streams {
		title[s] = s.title()
	}
	// When several lines without an id stand between lines of two members in a file, they may be of
	// either.
	sole := map[*stream]string{}
	for _, s := range c.streams {
		if len(s.ids) == 1 {
			sole[s] = sortedKeys(s.ids)[0]
		}
	}
	for s, id := range sole {
		if c.names.byID[id] == "" && s.name != "" {
			c.names.byID[id] = s.name
		}
		title[s] = c.names.of(id)
	}
	for s := range title {
		if s.name != "" {
			title[s] = s.name
		}
	}
	// A member whose id has no name anywhere is called as its logs are: by the wrapping, or by the
	// file's name if all agree.
	called := map[string]string{}
	for _, s := range c.streams {
		id, name := sole[s], s.title()
		if id == "" || name == "-" || c.names.of(id) != id {
			continue
		}
		if before, ok := called[id]; ok && before != name {
			name = ""
		}
		called[id] = name
	}
	for id, name := range called {
		if name != "" {
			c.names.byID[id] = name
		}
	}
	c.names.distinguish()
	perStream := map[*stream][]*Event{}
	for _, e := range c.events {
		perStream[e.stream] = append(perStream[e.stream], e)
	}
	for s, events := range perStream {
		switch {
		case sole[s] != "":
			for _, e := range events {
				e.own = sole[s]
			}
		case len(s.ids) > 1 && s.switches <= max(s.starts, len(s.ids)-1):
			fill(events) // logs one behind the other
		}
		for _, e := range events {
			if len(s.ids) > 1 {
				e.ran, e.again = false, false
			}
			switch {
			case e.own != "":
				e.Member = c.names.of(e.own)
			case len(s.ids) == 0 && title[s] != "-":
				e.Member = title[s]
			}
		}
	}
	c.lives()
	for _, e := range c.events {
		if e.Leader != "" {
			e.Leader = c.names.of(e.Leader)
		}
		if e.Peer != "" {
			e.Peer = c.names.of(e.Peer)
		}
	}
}

// lives marks the starts before which another file has lines of the same member: logs are rotated,
// and the kubelet begins a file for each life of a container.
func (c *Collector) lives() {
	of := map[string][]*stream{}
	for _, e := range c.events {
		if e.Member != "" && e.Kind != kindClient && !slices.Contains(of[e.Member], e.stream) {
			of[e.Member] = append(of[e.Member], e.stream)
		}
	}
	for _, e := range c.events {
		if e.Kind == kindStart && !e.again && e.stream != nil && len(e.stream.ids) < 2 {
			e.again = slices.ContainsFunc(of[e.Member], func(s *stream) bool {
				return s != e.stream && len(s.ids) < 2 && !s.first.IsZero() && s.first.Before(e.At.Add(-2*time.Second))
			})
		}
	}
}

// fill gives events without an id that of those around them, if these agree.
func fill(events []*Event) {
	after := make([]string, len(events))
	next := ""
	for i, e := range slices.Backward(events) {
		if e.own != "" {
			next = e.own
		}
		after[i] = next
	}
	before := ""
	for i, e := range events {
		if e.own == "" && before == after[i] {
			e.own = before
		}
		if e.own != "" {
			before = e.own
		}
	}
}
