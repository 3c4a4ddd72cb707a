package logs

import (
	"cmp"
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Line is one line of a log without its wrapping.
type Line struct {
	At     time.Time // zero: the line has no time, and no line before it has one
	Level  string    // lower case: debug, info, warn, error, fatal, panic; empty: not told
	Msg    string
	Fields map[string]string // of structured logs; values as text, without quotes
	From   string            // who wrote it as the wrapping says: a pod, a container, a prefix, a host and a process; may be empty
	Shown  string            // the line as it is quoted: without wrapping, at most maxShown bytes
	// Foreign is set for lines about a process by another: systemd's, the kernel's.
	Foreign bool
	// Client is set for lines in a form that clients' logs have and members' never.
	Client bool
}

const (
	maxLine  = 64 << 10 // bytes of a line that are looked at
	maxShown = 500      // bytes of a line that are kept
	maxField = 400      // bytes of a field that are kept
	maxPeels = 6        // wrappings around a line
)

// A stamp is a time as it was read.
type stamp struct {
	at      time.Time
	zone    bool // it says which zone
	undated bool // it is a time of day alone
	set     bool
}

// better says whether t should be replaced by the stamp of an inner layer: that is when the process
// wrote the line, while the outer one is when somebody took it. But a time without zone or date is
// worse than one with.
func (t stamp) better(inner stamp) stamp {
	if !inner.set || t.set && (t.zone && !inner.zone || !t.undated && inner.undated) {
		return t
	}
	return inner
}

var (
	ansi       = regexp.MustCompile(`\x1b\[[0-9;]{0,12}m`)
	criLine    = regexp.MustCompile(`^(\S{19,40}) (stdout|stderr) ([FP]) ?(.*)$`)
	podLine    = regexp.MustCompile(`^\[pod/([^/\]\s]{1,128})/([^\]\s]{1,128})\] (.*)$`)
	prefixLine = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9_.-]{0,63}) +\| ?(.*)$`)
	syslogLine = regexp.MustCompile(`^([A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d(?:\.\d{1,9})?) (\S{1,255}) ([^\s:\[]{1,128})(?:\[(\d{1,10})\])?: (.*)$`)
	isoLine    = regexp.MustCompile(`^(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S{0,20}) (\S{1,255}) ([^\s:\[]{1,128})(?:\[(\d{1,10})\])?: (.*)$`)
	fullLine   = regexp.MustCompile(`^[A-Z][a-z]{2} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,9})?) ([A-Z]{2,5}|[+-]\d\d(?:\d\d)?) (\S{1,255}) ([^\s:\[]{1,128})(?:\[(\d{1,10})\])?: (.*)$`)
	capnsLine  = regexp.MustCompile(`^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,9}) ([CEWNIDT]) \| (.*)$`)
	raftLine   = regexp.MustCompile(`^raft(\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d) (DEBUG|INFO|WARN|ERROR|FATAL|PANIC): (.*)$`)
	personLine = regexp.MustCompile(`^(\d\d:\d\d:\d\d\.\d{3}) (DEBUG|INFO|WARN|ERROR|DPANIC|PANIC|FATAL) +(.*)$`)
	klogLine   = regexp.MustCompile(`^([IWEF])(\d\d)(\d\d) (\d\d:\d\d:\d\d\.\d{6}) +\d{1,10} ([^\s\]:]{1,128}:\d{1,7})\] (.*)$`)
	pythonLine = regexp.MustCompile(`^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[,.]\d{3}) (?:- )?(DEBUG|INFO|WARNING|ERROR|CRITICAL):? (.*)$`)
	goLogLine  = regexp.MustCompile(`^(\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d(?:\.\d{6})?) (.*)$`)
	syslog5424 = regexp.MustCompile(`^<\d{1,3}>1 (\S{19,40}) (\S{1,255}) (\S{1,128}) \S{1,128} \S{1,128} (?:-|\[[^\]]*\]) ?(.*)$`)
	stampLine  = regexp.MustCompile(`^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S{1,20}) (.+)$`)
	capnsText  = regexp.MustCompile(`^(etcdmain|etcdserver|embed|raft|rafthttp|wal|mvcc|auth|lease|snap|store|osutil|pkg/[a-z]+|etcdserver/[a-z0-9]+|mvcc/backend): (.*)$`)
	pairText   = regexp.MustCompile(` ([A-Za-z0-9_-]{1,64})=("(?:[^"\\]|\\.)*"|\[[^\]]*\]|\S*)`)
)

var capnsLevels = map[string]string{"C": "fatal", "E": "error", "W": "warn", "N": "info", "I": "info", "D": "debug", "T": "debug"}

// A parser understands the lines of one input. What lines do not tell of their time it takes from
// those before them.
type parser struct {
	ref     time.Time      // no line is later than about this: when the input was last written, or read
	zone    *time.Location // of times that name none
	last    map[string]time.Time
	partial map[string]string // beginnings of lines that the container runtime cut, by who wrote them

	// of times of day without a date: the day that is counted, the last time, and whether there
	// were any
	day      int
	ofDay    time.Duration
	undated  bool
	guessed  bool // a zone had to be assumed
	noYear   bool
	wrapping map[string]int // how many lines were in which form
}

func newParser(ref time.Time, zone *time.Location) *parser {
	return &parser{ref: ref, zone: zone, last: map[string]time.Time{}, partial: map[string]string{}, wrapping: map[string]int{}}
}

// parse makes a Line of a line's text; ok is false if it is of no form that is known, or only a
// piece of a line.
func (p *parser) parse(text string) (l Line, ok bool) {
	if len(text) > maxLine {
		text = text[:maxLine]
	}
	text = strings.TrimRight(text, "\r\n ")
	return p.below(text, l, stamp{}, false)
}

// below is parse for a line some of whose wrapping is off already; done: all of it.
func (p *parser) below(text string, l Line, t stamp, done bool) (_ Line, ok bool) {
	form := ""
	if done || t.set {
		form, ok = "journal", done
	}
	for i := 0; i < maxPeels && !done; i++ {
		var next string
		if strings.IndexByte(text, '\x1b') >= 0 { // also within what a runtime took
			text = ansi.ReplaceAllString(text, "")
		}
		text, next, done = p.peel(text, &l, &t)
		if next != "" {
			if form != "" {
				form += ", "
			}
			form += next
		}
		ok = done && next != ""
	}
	if !ok || l.Msg == "" && len(l.Fields) == 0 {
		return l, false
	}
	p.wrapping[form]++
	p.time(&l, t)
	if l.Shown == "" {
		l.Shown = text
	}
	l.Shown = cut(l.Shown, maxShown)
	l.Msg = cut(l.Msg, 4*maxShown)
	return l, true
}

// time gives the line its time. Without one it has that of the line before.
func (p *parser) time(l *Line, t stamp) {
	switch {
	case !t.set:
		l.At = p.last[l.From]
		return
	case t.undated:
		p.undated = true
		ofDay := t.at.Sub(t.at.Truncate(24 * time.Hour))
		if ofDay < p.ofDay-12*time.Hour {
			p.day++
		}
		p.ofDay = ofDay
		l.At = time.Date(1, 1, 1+p.day, 0, 0, 0, 0, p.zone).Add(ofDay)
	default:
		l.At = t.at
	}
	if !t.zone {
		p.guessed = true
	}
	if len(p.last) < 1024 {
		p.last[l.From] = l.At
	}
}

// peel takes one layer off. form names it; done: there is none below.
func (p *parser) peel(text string, l *Line, t *stamp) (rest, form string, done bool) {
	from := func(parts ...string) {
		for _, s := range parts {
			if s != "" {
				if l.From != "" {
					l.From += " "
				}
				l.From = cut(l.From+s, 200)
			}
		}
	}
	if strings.HasPrefix(text, "{") {
		return p.object(text, l, t, from)
	}
	if m := criLine.FindStringSubmatch(text); m != nil {
		if s := p.stamp(m[1]); s.set {
			*t = t.better(s)
			body := p.partial[l.From] + m[4]
			if m[3] == "P" {
				if len(p.partial) < 256 || p.partial[l.From] != "" {
					p.partial[l.From] = cut(body, maxLine)
				}
				return "", "", true
			}
			delete(p.partial, l.From)
			return body, "CRI", false
		}
	}
	if m := podLine.FindStringSubmatch(text); m != nil {
		from(m[1])
		return m[3], "kubectl", false
	}
	if m := syslog5424.FindStringSubmatch(text); m != nil {
		if s := p.stamp(m[1]); s.set {
			*t = t.better(s)
			from(m[2])
			return p.journaled(l, m[3], strings.TrimPrefix(m[4], "\ufeff"), from)
		}
	}
	if m := capnsLine.FindStringSubmatch(text); m != nil {
		*t = t.better(p.stamp(m[1]))
		l.Level, l.Msg = capnsLevels[m[2]], m[3]
		return text, "capnslog", true
	}
	// Where 3.4 writes capnslog, raft's own lines go by another way: elections are in these alone.
	if m := raftLine.FindStringSubmatch(text); m != nil {
		*t = t.better(p.stamp(m[1] + "-" + m[2] + "-" + m[3] + " " + m[4]))
		l.Level, l.Msg = strings.ToLower(m[5]), "raft: "+m[6]
		return text, "capnslog", true
	}
	if m := personLine.FindStringSubmatch(text); m != nil {
		*t = t.better(p.stamp(m[1]))
		l.Level = strings.ToLower(m[2])
		l.Msg, l.Fields = splitPairs(m[3])
		return text, "Belay's terminal", true
	}
	if rest, form, ok := p.client(text, l, t); ok {
		return rest, form, true
	}
	if strings.Count(text, "\t") >= 2 {
		if p.console(text, l, t) {
			return text, "zap console", true
		}
	}
	for _, re := range []*regexp.Regexp{syslogLine, isoLine, fullLine} {
		m := re.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		when := m[1]
		if re == fullLine {
			if m[2] != "UTC" && m[2] != "GMT" && !strings.ContainsAny(m[2], "+-") {
				when = m[1] // a zone's abbreviation says no zone for certain
			} else if m[2] == "UTC" || m[2] == "GMT" {
				when += "Z"
			} else {
				when += m[2]
			}
			m = append(m[:2], m[3:]...)
		}
		s := p.stamp(when)
		if !s.set {
			continue
		}
		*t = t.better(s)
		from(m[2])
		return p.journaled(l, m[3], m[5], from)
	}
	if m := stampLine.FindStringSubmatch(text); m != nil {
		if s := p.stamp(m[1]); s.set {
			*t = t.better(s)
			return m[2], "timestamps", false
		}
	}
	if m := prefixLine.FindStringSubmatch(text); m != nil {
		from(m[1])
		return m[2], "prefix", false
	}
	for _, begin := range []string{"panic: ", "fatal error: ", "runtime: out of memory", "[signal SIG", "SIGABRT", "SIGBUS"} {
		if strings.HasPrefix(text, begin) {
			l.Level, l.Msg = "panic", text
			return text, "Go runtime", true
		}
	}
	// Whatever others put before it (stern: pod and container).
	if before, _, ok := strings.Cut(text, `{"level":"`); ok && before != "" && len(before) <= 200 {
		for _, word := range strings.Fields(before) {
			if !strings.ContainsAny(word, `:"`) { // no time
				from(word)
			}
		}
		return text[len(before):], "prefix", false
	}
	if t.set {
		if m := capnsText.FindStringSubmatch(text); m != nil {
			l.Msg = text
			return text, "text", true
		}
		l.Msg = text
		return text, "text", true
	}
	return text, "", true
}

// client is a line of a client: in the form of Kubernetes' programs, of Python's (Patroni), or of
// Go's own log package, which gRPC writes to, too.
func (p *parser) client(text string, l *Line, t *stamp) (rest, form string, ok bool) {
	if m := klogLine.FindStringSubmatch(text); m != nil {
		if month, err := strconv.Atoi(m[2]); err == nil && month >= 1 && month <= 12 {
			*t = t.better(p.stamp(time.Month(month).String()[:3] + " " + m[3] + " " + m[4]))
			l.Level = map[string]string{"I": "info", "W": "warn", "E": "error", "F": "fatal"}[m[1]]
			l.Msg, l.Client = m[6], true
			return text, "klog", true
		}
	}
	if m := pythonLine.FindStringSubmatch(text); m != nil {
		*t = t.better(p.stamp(m[1]))
		l.Level, l.Msg, l.Client = strings.ToLower(m[2]), m[3], true
		return text, "Python's log", true
	}
	if m := goLogLine.FindStringSubmatch(text); m != nil {
		*t = t.better(p.stamp(m[1] + "-" + m[2] + "-" + m[3] + " " + m[4]))
		l.Msg, l.Client = m[5], true
		return text, "Go's log", true
	}
	return text, "", false
}

// journaled is what remains of a line of the journal or of syslog that the program ident wrote.
// What systemd and the kernel say of a machine belongs to the member on it, what other programs say
// does not.
func (p *parser) journaled(l *Line, ident, body string, from func(...string)) (rest, form string, done bool) {
	if ident == "systemd" || ident == "kernel" {
		l.Foreign, l.Msg = true, ident+": "+body
		return ident + ": " + body, "journal", true
	}
	if !strings.Contains(ident, "etcd") && !strings.Contains(ident, "belay") {
		from(ident)
	}
	return body, "journal", false
}

// object is a JSON object: docker's, the journal's, or zap's.
func (p *parser) object(text string, l *Line, t *stamp, from func(...string)) (rest, form string, done bool) {
	var raw map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &raw) != nil {
		return text, "", true
	}
	str := func(key string) string { return plain(raw[key]) }
	_, hasMsg := raw["msg"]
	switch {
	case raw["MESSAGE"] != nil || raw["__REALTIME_TIMESTAMP"] != nil:
		fields := map[string]string{}
		for _, k := range []string{"_HOSTNAME", "SYSLOG_IDENTIFIER", "__REALTIME_TIMESTAMP", "_SOURCE_REALTIME_TIMESTAMP", "_TRANSPORT"} {
			fields[k] = str(k)
		}
		msg := str("MESSAGE")
		var bytes []int
		if json.Unmarshal(raw["MESSAGE"], &bytes) == nil && len(bytes) > 0 {
			b := make([]byte, 0, len(bytes))
			for _, c := range bytes {
				b = append(b, byte(c))
			}
			msg = string(b)
		}
		return p.journalEntry(l, t, fields, msg, from)
	case !hasMsg && raw["log"] != nil:
		*t = t.better(p.stamp(str("time")))
		var k struct {
			Pod string `json:"pod_name"`
		}
		_ = json.Unmarshal(raw["kubernetes"], &k)
		from(k.Pod)
		return strings.TrimRight(str("log"), "\r\n"), "docker", false
	case !hasMsg && wrapped(raw) != "":
		for _, key := range []string{"@timestamp", "timestamp", "time", "ts"} {
			if s := p.stamp(str(key)); s.set {
				*t = t.better(s)
				break
			}
		}
		from(podOf(raw))
		return strings.TrimRight(str(wrapped(raw)), "\r\n"), "log shipper", false
	case hasMsg || raw["message"] != nil && raw["level"] != nil:
		l.Fields = make(map[string]string, len(raw))
		for key, v := range raw {
			switch key {
			case "level":
				l.Level = strings.ToLower(plain(v))
			case "ts", "time", "timestamp":
				*t = t.better(p.stamp(plain(v)))
			case "msg", "message":
				l.Msg = plain(v)
			case "stacktrace":
			default:
				if len(l.Fields) < 64 {
					l.Fields[key] = cut(plain(v), maxField)
				}
			}
		}
		l.Shown = shownFields(l)
		return text, "zap JSON", true
	}
	return text, "", true
}

// wrapped is the field of a log shipper's object (Filebeat, Vector, Loki, Cloud Logging) that has a
// structured line inside; empty: none has.
func wrapped(raw map[string]json.RawMessage) string {
	for _, key := range []string{"message", "line", "log", "body", "textPayload"} {
		if text := plain(raw[key]); strings.HasPrefix(text, "{") && strings.HasPrefix(string(raw[key]), `"`) || capnsLine.MatchString(text) {
			return key
		}
	}
	return ""
}

// podOf is the pod that a log shipper names.
func podOf(raw map[string]json.RawMessage) string {
	var k struct {
		Name string `json:"pod_name"`
		Pod  struct {
			Name string `json:"name"`
		} `json:"pod"`
	}
	_ = json.Unmarshal(raw["kubernetes"], &k)
	var labels struct {
		Pod string `json:"pod"`
	}
	_ = json.Unmarshal(raw["labels"], &labels)
	return cut(cmp.Or(k.Name, k.Pod.Name, labels.Pod), 128)
}

// journalEntry is an entry of journalctl's json or export forms.
func (p *parser) journalEntry(l *Line, t *stamp, fields map[string]string, msg string, from func(...string)) (rest, form string, done bool) {
	for _, key := range []string{"_SOURCE_REALTIME_TIMESTAMP", "__REALTIME_TIMESTAMP"} {
		if us, err := strconv.ParseInt(fields[key], 10, 64); err == nil && us > 0 && us < 1<<53 {
			*t = t.better(stamp{at: time.UnixMicro(us).UTC(), zone: true, set: true})
			break
		}
	}
	from(fields["_HOSTNAME"])
	ident := fields["SYSLOG_IDENTIFIER"]
	if fields["_TRANSPORT"] == "kernel" {
		ident = "kernel"
	}
	return p.journaled(l, ident, strings.TrimRight(msg, "\r\n"), from)
}

// console is zap's console form: time, level, logger (sometimes), caller, message, fields, with
// tabs between.
func (p *parser) console(text string, l *Line, t *stamp) bool {
	parts := strings.Split(text, "\t")
	s := p.stamp(parts[0])
	level := strings.ToLower(parts[1])
	if !s.set || !strings.Contains(" debug info warn error dpanic panic fatal ", " "+level+" ") {
		return false
	}
	*t = t.better(s)
	l.Level = level
	rest := parts[2:]
	for i := 0; i < 2 && len(rest) > 1; i++ {
		if j := strings.LastIndexByte(rest[0], ':'); j > 0 && strings.HasSuffix(rest[0][:j], ".go") {
			rest = rest[1:]
			break
		} else if !strings.ContainsRune(rest[0], ' ') && len(rest) > 2 {
			rest = rest[1:]
		} else {
			break
		}
	}
	l.Msg = rest[0]
	if len(rest) > 1 {
		var raw map[string]json.RawMessage
		if json.Unmarshal([]byte(rest[len(rest)-1]), &raw) == nil {
			l.Fields = make(map[string]string, len(raw))
			for key, v := range raw {
				if len(l.Fields) < 64 {
					l.Fields[key] = cut(plain(v), maxField)
				}
			}
		}
	}
	return true
}

// splitPairs takes the key=value behind a message off it.
func splitPairs(text string) (msg string, fields map[string]string) {
	at := pairText.FindAllStringSubmatchIndex(text, 64)
	if len(at) == 0 {
		return text, nil
	}
	fields = map[string]string{}
	for _, m := range at {
		v := text[m[4]:m[5]]
		if s, err := strconv.Unquote(v); err == nil {
			v = s
		}
		fields[text[m[2]:m[3]]] = cut(v, maxField)
	}
	return text[:at[0][0]], fields
}

// plain is a JSON value as text: strings without quotes.
func plain(raw json.RawMessage) string {
	if len(raw) > 0 && raw[0] == '"' {
		var s string
		if json.Unmarshal(raw, &s) == nil {
			return s
		}
	}
	return string(raw)
}

// shownFields quotes a structured line without what every line has.
func shownFields(l *Line) string {
	var b strings.Builder
	b.WriteString(l.Msg)
	for _, key := range sortedKeys(l.Fields) {
		if key == "caller" || key == "logger" || key == "local-member-id" {
			continue
		}
		if b.Len() > maxShown {
			break
		}
		b.WriteString(" " + key + "=" + l.Fields[key])
	}
	return b.String()
}

// cut is the beginning of text, at most limit bytes of it, with no half character at its end.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "")
}
