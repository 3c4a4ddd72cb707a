package logs

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Kind is what an event is of.
type Kind string

const (
	kindStart     Kind = "start"
	kindSignal    Kind = "signal"
	kindStopped   Kind = "stopped"
	kindPanic     Kind = "panic"
	kindKilled    Kind = "killed" // as somebody else says: systemd, the kernel
	kindOOM       Kind = "out of memory"
	kindCampaign  Kind = "campaign"
	kindLeads     Kind = "became leader"
	kindElected   Kind = "elected"
	kindLost      Kind = "lost leader"
	kindDown      Kind = "stepped down"
	kindIgnored   Kind = "vote ignored"
	kindAsked     Kind = "asked for a vote"
	kindHeard     Kind = "heard of a vote"
	kindOwnLate   Kind = "own log late" // 3.6 and later: what it wrote before Took, when it learned of a leader, is on its disk only now
	kindReadState Kind = "loop waited for readers"
	kindTransfer  Kind = "hand-over"
	kindHandDisk  Kind = "hand-over because of the disk"
	kindNoQuorum  Kind = "no quorum"
	kindLate      Kind = "heartbeat late"
	kindLateCPU   Kind = "heartbeat late, no CPU" // Belay's, which has measured why
	kindSync      Kind = "slow fsync"
	kindDiskBad   Kind = "disk stalled" // Belay's watch of its disk
	kindDiskWell  Kind = "disk well again"
	kindApply     Kind = "slow apply"
	kindRequest   Kind = "slow request"
	kindReadIndex Kind = "slow ReadIndex"
	kindTick      Kind = "tick missed"
	kindConnLost  Kind = "connection lost"
	kindInactive  Kind = "peer inactive"
	kindActive    Kind = "peer active"
	kindProbe     Kind = "probe failed"
	kindDropped   Kind = "message dropped"
	kindClock     Kind = "clock differs"
	kindTLS       Kind = "certificate"
	kindCluster   Kind = "cluster ID mismatch"
	kindDiskFull  Kind = "disk full"
	kindNoSpace   Kind = "NOSPACE"
	kindCorrupt   Kind = "corrupt"
	kindSnapshot  Kind = "snapshot"
	kindDefrag    Kind = "defragmentation"
	kindCompact   Kind = "compaction"
	kindVerdict   Kind = "verdict"
	kindClient    Kind = "client error"
)

// repeats says whether lines of this kind that follow each other are one event.
func (k Kind) repeats() bool {
	switch k {
	case kindStart, kindSignal, kindPanic, kindKilled, kindOOM, kindLeads, kindElected, kindDown, kindTransfer, kindHandDisk, kindDefrag, kindVerdict, kindLost:
		return false
	}
	return true
}

// An Event is what one line says, or several that say the same.
type Event struct {
	At, Last time.Time // of the first line, and of the last
	Member   string    // who says so: a name, or what stands for one; empty: not known
	Kind     Kind
	Text     string // as the timeline shows it
	Term     uint64
	Leader   string // id, then name, of the leader that the line names
	Peer     string // id, then name, of the other member
	Took     time.Duration
	Count    int
	Lines    []string // the first lines, as they were

	own    string // the member's id as the line itself tells it
	stream *stream
	ran    bool // the member wrote other lines during Took
	again  bool // of a start: its log has lines before it
	fields map[string]string
	err    string
}

// longest is for how long lines that repeat are one event.
func (e *Event) longest() time.Duration {
	if e.ofLoad() || e.Kind == kindClock {
		return 10 * time.Minute
	}
	return time.Minute
}

// gap is how far apart lines that repeat may be and be one event. About clocks etcd says the same
// every 30 s.
func (k Kind) gap() time.Duration {
	if k == kindClock {
		return time.Minute
	}
	return 5 * time.Second
}

// within says whether it can be of what other tells of: they were at the same time, to within what
// it takes to write the lines.
func (e *Event) within(other *Event) bool {
	return !e.Last.Before(other.begins()) && !e.begins().After(other.Last.Add(beside))
}

// ofLoad says whether it tells of slow requests, which may come for days.
func (e *Event) ofLoad() bool { return e.Kind == kindApply || e.Kind == kindRequest }

// maxQuoted is how many lines an event keeps.
const maxQuoted = 3

func (e *Event) more(with *Event) {
	e.Count++
	if with.At.After(e.Last) {
		e.Last = with.At
	}
	e.ran = with.ran && with.Took >= e.Took || e.ran && e.Took > with.Took
	e.Took = max(e.Took, with.Took)
	e.Term = max(e.Term, with.Term)
	if e.err == "" {
		e.err = with.err
	}
	if len(e.Lines) < maxQuoted {
		e.Lines = append(e.Lines, with.Lines...)
	}
}

const hexID = `([0-9a-f]{4,16})`

var (
	rxOwn      = regexp.MustCompile(`^(?:raft\d*: )?(?:INFO: |WARN: )?(?:raft\.node: |newRaft )?` + hexID + ` (?:\[|became |is starting|received |has received|elected|changed leader|lost leader|stepped down|no leader|sends |sent |cast |switched|A tick|forgetting|not forwarding)`)
	rxMember   = regexp.MustCompile(`(?:starting|restarting) member ` + hexID + ` in cluster`)
	rxCampaign = regexp.MustCompile(hexID + ` is starting a new election at term (\d+)`)
	rxCand     = regexp.MustCompile(hexID + ` became candidate at term (\d+)`)
	rxLeads    = regexp.MustCompile(hexID + ` became leader at term (\d+)`)
	rxElected  = regexp.MustCompile(`raft\.node: ` + hexID + ` elected leader ` + hexID + ` at term (\d+)`)
	rxChanged  = regexp.MustCompile(`raft\.node: ` + hexID + ` changed leader from ` + hexID + ` to ` + hexID + ` at term (\d+)`)
	rxLost     = regexp.MustCompile(`raft\.node: ` + hexID + ` lost leader ` + hexID + ` at term (\d+)`)
	rxDown     = regexp.MustCompile(hexID + ` stepped down to follower since quorum is not active`)
	rxIgnored  = regexp.MustCompile(hexID + ` .*ignored (?:MsgPreVote|MsgVote) from ` + hexID + `.* at term (\d+): lease is not expired`)
	rxAsked    = regexp.MustCompile(hexID + ` \[.*\] sent (?:MsgPreVote|MsgVote) request to ` + hexID + ` at term (\d+)`)
	rxHeard    = regexp.MustCompile(hexID + ` \[.*\] (?:cast|rejected) (?:MsgPreVote|MsgVote) (?:for|from) ` + hexID + ` `)
	rxHeardNew = regexp.MustCompile(hexID + ` \[term: \d+\] received a (?:MsgPreVote|MsgVote) message with higher term from ` + hexID + ` \[term: (\d+)\]`)
	rxOldResp  = regexp.MustCompile(hexID + ` \[term: (\d+)\] ignored a MsgAppResp message with lower term from ` + hexID + ` \[term: \d+\]`)
	rxTransfer = regexp.MustCompile(hexID + ` \[term:? (\d+)\] starts to transfer leadership to ` + hexID)
	rxHigher   = regexp.MustCompile(hexID + ` \[term: \d+\] received a (MsgAppResp|MsgHeartbeat|MsgApp|MsgHeartbeatResp) message with higher term from ` + hexID + ` \[term: (\d+)\]`)
	rxPeer     = regexp.MustCompile(`(?:peer|connection with|health check for peer|message(?: of type \w+)? to) ` + hexID)
	rxPeerTo   = regexp.MustCompile(`, to ` + hexID + `\)?`)
	rxTook     = regexp.MustCompile(`(?:took too long|took|duration of|timeout for|too high|in|for) [\[(]?((?:\d+h)?(?:\d+m)?\d+(?:\.\d+)?(?:ns|us|µs|ms|s))`)
	rxSize     = regexp.MustCompile(`range_response_count:(\d+) size:(\d+)`)
	rxClient   = regexp.MustCompile(`etcdserver: (?:request timed out|leader changed|no leader|server stopped|too many requests|mvcc: database space exceeded|not capable)|connection refused|transport is closing|` +
		`createTransport failed|code = (?:Unavailable|DeadlineExceeded|ResourceExhausted)|EtcdConnectionFailed|No more machines in the cluster|Request to server \S+ failed|DCS is not accessible|EtcdException`)
	rxKilled = regexp.MustCompile(`systemd: (\S*etcd\S*|\S*belay\S*): .*(?:status=9/KILL|code=killed|code=dumped|oom-kill)`)
	rxOOM    = regexp.MustCompile(`kernel: .*(?:Out of memory|oom-kill|Killed process \d+ \((?:etcd|belay)\))`)
)

// ownID is the id of the member that wrote a line, if the line tells it.
func ownID(l *Line) string {
	if l.Foreign {
		return ""
	}
	if id := l.Fields["local-member-id"]; isID(id) {
		return trimID(id)
	}
	if strings.HasPrefix(l.Msg, "etcdserver: ") {
		if m := rxMember.FindStringSubmatch(l.Msg); m != nil {
			return trimID(m[1])
		}
	}
	if m := rxOwn.FindStringSubmatch(l.Msg); m != nil {
		return trimID(m[1])
	}
	return ""
}

func isID(text string) bool {
	if len(text) < 1 || len(text) > 16 {
		return false
	}
	_, err := strconv.ParseUint(text, 16, 64)
	return err == nil
}

func trimID(id string) string { return strings.TrimLeft(id, "0") }

// duration reads what zap or people write for one.
func duration(text string) time.Duration {
	if d, err := time.ParseDuration(text); err == nil {
		return min(max(d, 0), 1000*time.Hour)
	}
	if f, err := strconv.ParseFloat(text, 64); err == nil && f >= 0 && f < 3.6e6 { // zap's default: seconds
		return time.Duration(f * float64(time.Second))
	}
	return 0
}

// firstField is the first of these fields that the line has.
func firstField(l *Line, keys ...string) string {
	for _, k := range keys {
		if v := l.Fields[k]; v != "" {
			return v
		}
	}
	return ""
}

// classify makes an event of a line that matters.
func classify(l *Line) (*Event, bool) {
	e := &Event{At: l.At, Last: l.At, Count: 1, Lines: []string{l.Shown}, fields: l.Fields}
	e.err = firstField(l, "error")
	msg := l.Msg
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(msg, p) {
				return true
			}
		}
		return false
	}
	is := func(k Kind, text string) (*Event, bool) { e.Kind, e.Text = k, text; return e, true }
	term := func(text string) { e.Term, _ = strconv.ParseUint(text, 10, 64) }
	if l.Foreign {
		switch {
		case rxOOM.MatchString(msg):
			return is(kindOOM, "the kernel killed a process for lack of memory")
		case rxKilled.MatchString(msg):
			return is(kindKilled, "systemd: the process was killed or crashed")
		}
		return nil, false
	}
	if l.Client {
		if rxClient.MatchString(msg) {
			return is(kindClient, "a client's call failed")
		}
		return nil, false
	}
	e.Peer = trimID(firstField(l, "remote-peer-id", "peer-id", "to"))
	if e.Peer == "" {
		if m := rxPeer.FindStringSubmatch(msg); m != nil {
			e.Peer = trimID(m[1])
		}
	}
	if !isID(e.Peer) {
		e.Peer = ""
	}
	took := func() {
		e.Took = duration(firstField(l, "exceeded-duration", "took", "time spent", "oldest-sync", "last-sync-took"))
		if e.Took == 0 {
			if m := rxTook.FindStringSubmatch(msg); m != nil {
				e.Took = duration(m[1])
			}
		}
	}
	switch {
	// raft
	case has(" at term ", "[term", "stepped down"):
		if m := rxElected.FindStringSubmatch(msg); m != nil {
			term(m[3])
			e.Leader = trimID(m[2])
			return is(kindElected, "sees a leader")
		}
		if m := rxChanged.FindStringSubmatch(msg); m != nil {
			term(m[4])
			e.Leader, e.Peer = trimID(m[3]), trimID(m[2])
			return is(kindElected, "sees another leader")
		}
		if m := rxLost.FindStringSubmatch(msg); m != nil {
			term(m[3])
			e.Peer = trimID(m[2])
			return is(kindLost, "lost its leader")
		}
		if m := rxLeads.FindStringSubmatch(msg); m != nil {
			term(m[2])
			e.Leader = trimID(m[1])
			return is(kindLeads, "became leader")
		}
		if m := rxCand.FindStringSubmatch(msg); m != nil {
			term(m[2])
			return is(kindCampaign, "asks for votes")
		}
		if m := rxCampaign.FindStringSubmatch(msg); m != nil {
			term(m[2])
			return is(kindCampaign, "starts an election")
		}
		if rxDown.MatchString(msg) {
			return is(kindDown, "stepped down: no answer from a quorum")
		}
		if m := rxIgnored.FindStringSubmatch(msg); m != nil {
			term(m[3])
			e.Peer = trimID(m[2])
			return is(kindIgnored, "refused a vote: it heard its leader lately")
		}
		if m := rxAsked.FindStringSubmatch(msg); m != nil {
			term(m[3])
			e.Peer = trimID(m[2])
			return is(kindAsked, "asked for a vote")
		}
		if m := rxHeard.FindStringSubmatch(msg); m != nil {
			e.Peer = trimID(m[2])
			return is(kindHeard, "answered a request for its vote")
		}
		if m := rxHeardNew.FindStringSubmatch(msg); m != nil {
			term(m[3])
			e.Peer = trimID(m[2])
			return is(kindHeard, "answered a request for its vote")
		}
		if m := rxOldResp.FindStringSubmatch(msg); m != nil && trimID(m[1]) == trimID(m[3]) {
			term(m[2])
			return is(kindOwnLate, "its own log has what it wrote before")
		}
		if m := rxTransfer.FindStringSubmatch(msg); m != nil {
			term(m[2])
			e.Peer = trimID(m[3])
			return is(kindTransfer, "hands leadership over")
		}
		if m := rxHigher.FindStringSubmatch(msg); m != nil {
			term(m[4])
			e.Peer = trimID(m[3])
			return is(kindIgnored, "learns of a later term")
		}
	case has("leadership transfer starting"):
		e.Peer = trimID(l.Fields["transferee-member-id"])
		return is(kindTransfer, "hands leadership over")
	case has("the disk of this leader has stalled; handing leadership over"):
		took()
		e.Took = max(e.Took, duration(l.Fields["oldest-work-of-store"]))
		e.Peer = trimID(l.Fields["transferee-member-id"])
		return is(kindHandDisk, "hands leadership over: its disk has stalled")
	case has("verdict on an incident"):
		return is(kindVerdict, "verdict: "+cut(l.Fields["cause"], 40))
	case has("the cluster has no quorum"):
		return is(kindNoQuorum, "no quorum")
	case has("timed out sending read state"):
		return is(kindReadState, "its raft loop waited for its own readers")
	case has("A tick missed to fire"):
		return is(kindTick, "its raft loop was blocked")
	}
	lower := strings.ToLower(msg + " " + e.err)
	hasErr := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(lower, p) {
				return true
			}
		}
		return false
	}
	switch {
	case hasErr("no space left on device", "disk quota exceeded"):
		return is(kindDiskFull, "no space left on device")
	case msg == "the member cannot run": // Belay's last line
		return is(kindPanic, "ended: "+cut(e.err, 60))
	case l.Level == "panic" || l.Level == "fatal" || l.Level == "dpanic":
		return is(kindPanic, "ended: "+cut(msg, 60))
	// the process
	case has("starting an etcd server", "starting etcd server", "etcd Version: ") || strings.HasPrefix(msg, "etcdserver: starting server..."):
		return is(kindStart, "started")
	case has("received signal; shutting down") || has("received ") && has(" signal, shutting down"):
		return is(kindSignal, "was asked to stop: "+cut(firstField(l, "signal")+"", 20))
	case has("closed etcd server"):
		return is(kindStopped, "has stopped")
	// what is late
	case has("failed to send out heartbeat on time", "failed to send out heartbeat"):
		took()
		if m := rxPeerTo.FindStringSubmatch(msg); m != nil {
			e.Peer = trimID(m[1])
		}
		e.Peer = "" // to all at once, as a rule
		if has("the process got no CPU or was stopped") {
			return is(kindLateCPU, "heartbeats late: no CPU, or stopped")
		}
		return is(kindLate, "heartbeats late")
	case has("slow fdatasync", "sync duration of"):
		took()
		return is(kindSync, "slow fsync")
	case has("the disk of the raft log is slow", "the disk of the raft log has stalled", "the disk of the raft log does not answer any more", "the store has stalled", "the store does not get on any more", "slow disk under the store"):
		took()
		return is(kindDiskBad, cut(msg, 60))
	case has("the disk of the raft log is healthy again", "the store gets on again"):
		return is(kindDiskWell, "its disk is well again")
	case has("apply request took too long", "apply entries took too long", "took too long (", "request took too long", "committing applied entries to the database took too long"):
		took()
		if l.Fields["time spent"] == "" && strings.HasPrefix(msg, "request stats") {
			return nil, false
		}
		return is(kindApply, "slow apply")
	case msg == "request stats" && l.Level == "warn":
		took()
		return is(kindRequest, "slow request")
	case has("waiting for ReadIndex response took too long", "timed out waiting for read index response"):
		return is(kindReadIndex, "a linearizable read waits")
	case has("server is likely overloaded"):
		return is(kindLate, "heartbeats late")
	// links
	case has("lost TCP streaming connection", "lost the TCP streaming connection"):
		return is(kindConnLost, "lost a connection")
	case has("became inactive"):
		return is(kindInactive, "peer became inactive")
	case has("became active"):
		return is(kindActive, "peer became active")
	case has("prober detected unhealthy status", "could not connect:", "failed to reach the peer URL", "failed to reach the peerURL"):
		if e.Peer == "" {
			e.Peer = trimID(l.Fields["remote-member-id"])
		}
		if !isID(e.Peer) {
			e.Peer = ""
		}
		if e.err == "" {
			e.err = msg
		}
		if hasErr("x509", "tls:", "certificate") {
			return is(kindTLS, "certificate refused")
		}
		return is(kindProbe, "peer does not answer")
	case has("dropped internal Raft message", "dropped Raft message", "dropped internal raft message"):
		return is(kindDropped, "dropped messages")
	case has("prober found high clock drift", "the clock difference against peer"):
		e.Took = duration(strings.TrimPrefix(l.Fields["clock-drift"], "-"))
		if e.Took == 0 {
			took()
		}
		return is(kindClock, "clock differs")
	case has("rejected connection", "x509:", "bad certificate", "TLS handshake error", "tls: "):
		if has("rejected connection") && !hasErr("tls", "x509", "certificate") {
			return nil, false // EOF of a probe of a load balancer
		}
		return is(kindTLS, "certificate refused")
	case hasErr("cluster id mismatch", "cluster-id mismatch"):
		return is(kindCluster, "another cluster's member")
	// space, data
	case has("message exceeded backend quota; raising alarm", "alarm raised") && hasErr("nospace", "quota") || has("alarm NOSPACE raised", "nearly full; raising alarm") || has("alarm raised") && l.Fields["alarm"] == "NOSPACE":
		return is(kindNoSpace, "NOSPACE alarm")
	case hasErr("database space exceeded"):
		return is(kindNoSpace, "writes are refused: database space exceeded")
	case has("hash mismatch", "hashes must match", "different hash values") || has("alarm raised") && l.Fields["alarm"] == "CORRUPT":
		return is(kindCorrupt, "members' data differ")
	case has("receiving database snapshot", "receiving snapshot", "sending merged snapshot", "sending database snapshot", "start to send database snapshot", "start to receive database snapshot", "received a snapshot") && !has("to client"):
		return is(kindSnapshot, "a snapshot is on its way")
	case has("finished defragmenting directory", "finished defragment"):
		took()
		return is(kindDefrag, "defragmentation ended")
	case has("defragmenting", "starting defragment"):
		return is(kindDefrag, "defragmentation began")
	case has("finished scheduled compaction"):
		took()
		if e.Took < 500*time.Millisecond {
			return nil, false
		}
		return is(kindCompact, "compaction took "+show(e.Took))
	// clients
	case has("retrying of unary invoker failed", "retrying of streaming invoker failed", "etcdserver: request timed out", "context deadline exceeded while waiting"):
		return is(kindClient, "a client's call failed")
	}
	return nil, false
}

// show is a duration as people read it.
func show(d time.Duration) string {
	switch {
	case d >= 2*time.Minute:
		return d.Round(time.Second).String()
	case d >= 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 0, 64) + " s"
	case d >= time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	case d >= time.Millisecond:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	return d.String()
}
