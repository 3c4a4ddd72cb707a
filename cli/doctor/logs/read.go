package logs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

const (
	maxEvents  = 50000 // events that are kept of all inputs
	maxStreams = 512   // writers that are told apart
	maxEntry   = 1 << 20
)

// Options say how inputs are read.
type Options struct {
	Zone  *time.Location // of times that name none; nil: UTC
	Since time.Time      // zero: from the beginning
	Until time.Time      // zero: to the end
}

// A Collector takes inputs one after the other and keeps what matters of them.
type Collector struct {
	o       Options
	streams []*stream
	byKey   map[string]*stream
	events  []*Event
	inputs  []inputCount
	names   names

	lines, unknown, leftOut int
	forms                   map[string]int
	guessed, noYear         bool // a zone, or a year, had to be assumed
	incomplete              []string
}

type inputCount struct {
	name           string
	lines, unknown int
}

// A stream is the lines of one writer in one input: those of one member, as a rule.
type stream struct {
	input, from string
	name        string // of the member, if lines tell it
	ids         map[string]bool
	last        time.Time
	current     map[string]*Event // the event that a line like it would continue, by kind and what it is about
	active      seconds
	starts      int
	begun       bool // of the two lines that tell a start, the first was the last
	starting    bool // the last that it did was to start
	running     bool // it did more since
	switches    int  // how often a line's own id was another than that of the line before with one
	lastID      string
	undated     []*Event
	first       time.Time
	learned     map[string]time.Time // when a member, by its id, learned of a leader last
}

// seconds is a set of seconds, in words of a minute each.
type seconds map[int64]uint64

// maxMinutes bounds what a stream remembers of when it was active: two years.
const maxMinutes = 1 << 20

func (s seconds) add(t time.Time) {
	u := t.Unix()
	if _, ok := s[u/60]; ok || len(s) < maxMinutes {
		s[u/60] |= 1 << (uint(u%60) & 63)
	}
}

// any says whether there is a second from from on and before to.
func (s seconds) any(from, to time.Time) bool {
	for u := from.Unix(); u < to.Unix(); u++ {
		if s[u/60]&(1<<(uint(u%60)&63)) != 0 {
			return true
		}
	}
	return false
}

// NewCollector is one that has read nothing.
func NewCollector(o Options) *Collector {
	if o.Zone == nil {
		o.Zone = time.UTC
	}
	return &Collector{o: o, byKey: map[string]*stream{}, forms: map[string]int{}, names: newNames()}
}

// Read takes one input whole. name is shown; written is when it was last written to, or now, and
// gives years to times that have none. What keeps it from the end of the input is told by the
// report; what was read before counts.
func (c *Collector) Read(in io.Reader, name string, written time.Time) {
	p := newParser(written, c.o.Zone)
	br := text(bufio.NewReaderSize(in, 256<<10))
	if magic, _ := br.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(br)
		if err != nil {
			c.incomplete = append(c.incomplete, fmt.Sprintf("%s cannot be read: %v", name, err))
			return
		}
		defer z.Close()
		br = text(bufio.NewReaderSize(z, 256<<10))
	}
	count := inputCount{name: name}
	export := false
	if head, _ := br.Peek(9); bytes.HasPrefix(head, []byte("__CURSOR=")) || bytes.HasPrefix(head, []byte("__REALTIM")) {
		export = true
	}
	var err error
	if export {
		err = c.readExport(br, p, name, &count)
	} else {
		err = eachLine(br, func(text string) { c.line(p, text, name, &count) })
	}
	c.settle(p, name, written)
	for form, n := range p.wrapping {
		c.forms[form] += n
	}
	c.guessed, c.noYear = c.guessed || p.guessed, c.noYear || p.noYear || p.undated
	c.lines, c.unknown = c.lines+count.lines, c.unknown+count.unknown
	c.inputs = append(c.inputs, count)
	if err != nil {
		c.incomplete = append(c.incomplete, fmt.Sprintf("%s was not read to its end: %v", name, err))
	}
}

// Unreadable is told of a file that could not be opened.
func (c *Collector) Unreadable(name string, err error) {
	if path := new(fs.PathError); errors.As(err, &path) {
		err = path.Err
	}
	c.incomplete = append(c.incomplete, fmt.Sprintf("%s cannot be read: %v", name, err))
}

// text is an input as UTF-8 without a byte order mark. PowerShell writes UTF-16.
func text(br *bufio.Reader) *bufio.Reader {
	mark, _ := br.Peek(3)
	switch {
	case bytes.HasPrefix(mark, []byte{0xff, 0xfe}):
		return bufio.NewReaderSize(&utf16Reader{in: br, order: binary.LittleEndian}, 256<<10)
	case bytes.HasPrefix(mark, []byte{0xfe, 0xff}):
		return bufio.NewReaderSize(&utf16Reader{in: br, order: binary.BigEndian}, 256<<10)
	case bytes.Equal(mark, []byte("\ufeff")):
		_, _ = br.Discard(len(mark)) // it was peeked at
	}
	return br
}

// A utf16Reader makes UTF-8 of UTF-16.
type utf16Reader struct {
	in    *bufio.Reader
	order binary.ByteOrder
	ready []byte
	begun bool
	err   error
}

func (u *utf16Reader) Read(p []byte) (int, error) {
	for len(u.ready) == 0 {
		if u.err != nil {
			return 0, u.err
		}
		var raw [8 << 10]byte
		n, err := io.ReadFull(u.in, raw[:])
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		u.err = err
		units := make([]uint16, 0, n/2)
		for i := 0; i+1 < n; i += 2 {
			units = append(units, u.order.Uint16(raw[i:]))
		}
		// A character of two units may be parted by the end of the buffer: it becomes two marks of
		// what cannot be read, in text that nobody searches for.
		if u.ready = []byte(string(utf16.Decode(units))); !u.begun {
			u.ready, u.begun = bytes.TrimPrefix(u.ready, []byte("\ufeff")), true
		}
	}
	n := copy(p, u.ready)
	u.ready = u.ready[n:]
	return n, nil
}

// eachLine gives take each line; of one that is longer than maxLine, its beginning.
func eachLine(br *bufio.Reader, take func(string)) error {
	var long []byte
	for {
		part, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			if room := maxLine - len(long); room > 0 {
				long = append(long, part[:min(len(part), room)]...)
			}
			continue
		}
		switch {
		case long != nil:
			take(string(long))
			long = nil
		case len(part) > 0:
			take(string(part[:min(len(part), maxLine)]))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readExport reads journalctl's export form: entries of KEY=value lines, with an empty line behind
// each; a value that is no text comes behind its key and a length.
func (c *Collector) readExport(br *bufio.Reader, p *parser, name string, count *inputCount) error {
	fields := map[string]string{}
	entry := func() {
		if len(fields) == 0 {
			return
		}
		var l Line
		var t stamp
		rest, _, done := p.journalEntry(&l, &t, fields, fields["MESSAGE"], func(s ...string) { l.From = cut(strings.Join(s, " "), 200) })
		fields = map[string]string{}
		c.counted(p, name, count, func() (Line, bool) { return p.below(rest, l, t, done) })
	}
	for {
		line, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			for errors.Is(err, bufio.ErrBufferFull) { // a value that long is none that is read
				_, err = br.ReadSlice('\n')
			}
			line = nil
		}
		if text := strings.TrimRight(string(line), "\n"); text == "" {
			entry()
		} else if key, value, ok := strings.Cut(text, "="); ok {
			if len(fields) < 128 {
				fields[cut(key, 64)] = cut(value, maxLine)
			}
		} else if err == nil {
			var size uint64
			if err := binary.Read(br, binary.LittleEndian, &size); err != nil {
				return err
			}
			value := make([]byte, min(size, maxLine))
			if size > maxEntry*64 {
				return fmt.Errorf("an entry of the journal's export form says that a field has %d bytes", size)
			}
			if _, err := io.ReadFull(br, value); err != nil {
				return err
			}
			if _, err := io.CopyN(io.Discard, br, int64(size)-int64(len(value))+1); err != nil {
				return err
			}
			if len(fields) < 128 {
				fields[cut(text, 64)] = string(value)
			}
		}
		if errors.Is(err, io.EOF) {
			entry()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *Collector) line(p *parser, text, name string, count *inputCount) {
	if strings.TrimSpace(text) == "" {
		return
	}
	c.counted(p, name, count, func() (Line, bool) { return p.parse(text) })
}

func (c *Collector) counted(p *parser, name string, count *inputCount, parse func() (Line, bool)) {
	pieces := len(p.partial)
	l, ok := parse()
	count.lines++
	if !ok {
		if len(p.partial) <= pieces {
			count.unknown++
		}
		return
	}
	c.take(l, name)
}

// take makes an event of a line, or adds it to one.
func (c *Collector) take(l Line, input string) {
	s := c.stream(input, l.From)
	c.names.learn(&l)
	e, known := classify(&l)
	own := ownID(&l)
	if own != "" {
		if s.lastID != "" && s.lastID != own {
			s.switches++
		}
		s.lastID, s.ids[own] = own, true
	}
	if name := nameOf(&l); name != "" && s.name == "" {
		s.name = name
	}
	previous := s.last
	if !l.At.IsZero() && !l.Foreign {
		s.last = l.At
		if s.first.IsZero() {
			s.first = l.At
		}
		if l.At.Year() >= earliest {
			s.active.add(l.At)
		}
	}
	// A start is told by several lines. It is a start after another life if the log has that life.
	if !s.starting && !previous.IsZero() && l.At.Sub(previous) > 5*time.Second || strings.HasPrefix(l.Msg, "ready to serve client requests") || known && e.Kind != kindStart {
		s.running, s.starting = true, false
	}
	if !known {
		return
	}
	e.stream, e.own = s, own
	if e.Kind == kindStart {
		first := strings.Contains(l.Msg, "starting an etcd server") || strings.Contains(l.Msg, "etcd Version: ")
		second := s.begun && !first // of the same start, however long it takes, and whatever peers say meanwhile
		s.begun = first
		if s.starting || second {
			return
		}
		s.starts++
		e.again = s.running
		s.starting, s.running = true, false
	}
	// Whoever wrote a line well after its sync, or its own loop, began to hang, and well before
	// that ended, was not standing still when it should have gone on.
	if begin := l.At.Add(-e.Took); e.Took > 0 && !previous.Before(begin.Add(min(e.Took/2, time.Second))) && previous.Before(l.At.Add(-e.Took/10)) {
		e.ran = true
	}
	switch e.Kind {
	case kindElected:
		s.learned[own] = l.At
	case kindOwnLate:
		if at, ok := s.learned[own]; ok {
			e.Took = max(0, l.At.Sub(at))
		}
	}
	key := string(e.Kind) + "\x00" + e.Peer + "\x00" + own
	if e.Kind.repeats() {
		if prev := s.current[key]; prev != nil && !l.At.Before(prev.Last.Add(-time.Second)) && l.At.Sub(prev.Last) < e.Kind.gap() && l.At.Sub(prev.At) < e.longest() {
			prev.more(e)
			return
		}
		if len(s.current) > 4096 {
			clear(s.current)
		}
	}
	if len(c.events) >= maxEvents && (e.Kind.repeats() || len(c.events) >= 2*maxEvents) {
		c.leftOut++
		return
	}
	if e.Kind.repeats() {
		s.current[key] = e
	}
	c.events = append(c.events, e)
	if l.At.Year() < earliest && !l.At.IsZero() {
		s.undated = append(s.undated, e)
	}
}

func (c *Collector) stream(input, from string) *stream {
	key := input + "\x00" + from
	s := c.byKey[key]
	if s == nil {
		if len(c.streams) >= maxStreams {
			if s = c.byKey[input+"\x00"]; s != nil {
				return s
			}
			if len(c.streams) > 2*maxStreams {
				return c.streams[len(c.streams)-1]
			}
			from, key = "", input+"\x00"
		}
		s = &stream{input: input, from: from, ids: map[string]bool{}, current: map[string]*Event{}, active: seconds{}, learned: map[string]time.Time{}}
		c.streams, c.byKey[key] = append(c.streams, s), s
	}
	return s
}

// settle gives dates to the times of day of an input: its last line is of the last such time before
// it was written.
func (c *Collector) settle(p *parser, input string, written time.Time) {
	if !p.undated {
		return
	}
	end := time.Date(1, 1, 1+p.day, 0, 0, 0, 0, p.zone).Add(p.ofDay)
	local := written.In(p.zone)
	at := time.Date(local.Year(), local.Month(), local.Day(), 0, 0, 0, 0, p.zone).Add(p.ofDay)
	if at.After(written.Add(time.Minute)) {
		at = at.AddDate(0, 0, -1)
	}
	shift := func(t time.Time) time.Time {
		if t.IsZero() || t.Year() >= earliest {
			return t
		}
		return at.Add(t.Sub(end)).UTC()
	}
	for _, s := range c.streams {
		if s.input != input {
			continue
		}
		for _, e := range s.undated {
			e.At, e.Last = shift(e.At), shift(e.Last)
			s.active.add(e.At)
		}
		s.undated, s.first, s.last = nil, shift(s.first), shift(s.last)
		clear(s.current)
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
