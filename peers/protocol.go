package peers

// Protocol is the version of the peer protocol that docs/peer-protocol.md describes and this source
// tree implements. It is not sent. A member learns what another one supports from HeaderBelay, and
// from its answers: 404 for a path that it does not have. A raft message with an unknown context
// means what it means to raft.
//
// It is raised when a path, a header or a context is added or changes its meaning.
const Protocol = 4

// Paths of etcd's members. The parts that answer register them in a Mux.
const (
	PathRaft             = "/raft"                 // POST: one raft message, where no stream stands
	PathRaftStream       = "/raft/stream/"         // the prefix of both streams, followed by the id of the member that asks, which receives
	PathRaftMessages     = "/raft/stream/message/" // GET: a stream of messages
	PathRaftAppends      = "/raft/stream/msgapp/"  // GET: a stream of appends
	PathRaftSnapshot     = "/raft/snapshot"        // POST: a MsgSnap and the state
	PathRaftProbing      = "/raft/probing"         // GET: health and the time
	PathMembers          = "/members"              // GET: the member list as JSON
	PathPromote          = "/members/promote/"     // POST, followed by a learner's id in decimal
	PathHashKV           = "/members/hashkv"       // GET with a JSON body: the hash of a revision
	PathLeases           = "/leases"               // POST: renew a lease, at the leader
	PathLeasesInternal   = "/leases/internal"      // POST: a lease's remaining time and keys, at the leader
	PathDowngradeEnabled = "/downgrade/enabled"    // GET: "true" or "false"
	PathVersion          = "/version"              // GET: JSON
)

// Paths only of Belay's members, for members that name themselves. etcd answers all of them with
// 404.
const (
	PathBelay     = "/belay/"           // all of them begin so
	PathDisk      = "/belay/disk"       // GET: replica.DiskReport as JSON
	PathPing      = "/belay/ping"       // GET: evidence.PingAnswer as JSON
	PathEvents    = "/belay/events"     // GET: evidence.Report of the last evidence.TellWithin, as JSON
	PathLastWords = "/belay/last-words" // POST: "failing" or "stopping", a space and why
	PathHeal      = "/belay/heal"       // POST: HealQuestion, answered with HealAnswer
	PathHealing   = "/belay/healing"    // POST: HealingQuestion, answered with HealingAnswer by a member that heals
	PathBackup    = "/belay/backup"     // POST: backup.TurnQuestion, answered with backup.TurnAnswer by a member that makes backups
	PathRenewals  = "/belay/renewals"   // GET, for a connection on which ProtocolRenewals is spoken, with the leader
)

// Protocols that are spoken on a connection after the request that asks for it (Upgrade). Each has
// its version in its name; who knows another one answers 426, and is asked in another way.
const (
	// ProtocolRenewals is that of renewals.go.
	ProtocolRenewals = "belay-renewals/1"
)

// Headers of etcd's members, in net/http's canonical form. Ids are hexadecimal.
const (
	HeaderFrom       = "X-Server-From"         // the sender's id
	HeaderVersion    = "X-Server-Version"      // the version of etcd that the sender is
	HeaderMinCluster = "X-Min-Cluster-Version" // the lowest version that it accepts
	HeaderCluster    = "X-Etcd-Cluster-Id"     // in requests and answers
	HeaderTo         = "X-Raft-To"             // the receiver's id: etcd's on streams, Belay's on POSTs too
	HeaderPeerURLs   = "X-Peerurls"            // the sender's, with commas between
)

// Headers of Belay's members, which those of etcd ignore.
const (
	HeaderBelay    = "X-Belay-Version"  // the sender's, in each request and answer: it is a Belay
	HeaderYou      = "X-Belay-You"      // YouStarted or YouNew, in each request
	HeaderSnapshot = "X-Belay-Snapshot" // "1": what follows the MsgSnap is a store's stream, no bbolt file
	HeaderHashOf   = "X-Belay-Hash-Of"  // HashOfState or HashOfCompaction, at PathHashKV
)

// Values of HeaderYou: whether the sender knows the receiver as a member that has run. One that has
// run and has no data has lost it.
const (
	YouStarted = "started"
	YouNew     = "new"
)

// Values of HeaderHashOf. The hash of a compaction can differ from that of the same revisions as
// stored (etcd's rule for a tombstone at the compaction's revision), and computing one where no
// compaction's is kept would cost a useless pass over all keys. A member of etcd may answer with
// either.
const (
	HashOfState      = "state"
	HashOfCompaction = "compaction"
)

// Contexts of raft messages: an additional meaning that raft ignores, as does a member of etcd or
// an older one. Each begins with "belay-"; raft's own contexts are "CampaignTransfer" and eight
// bytes.
const (
	// ContextRefused begins the context of a MsgAppResp by which a leader tells a follower that it
	// has refused proposals that the follower forwarded; their ids follow, eight bytes each,
	// big-endian. Where it is not understood their clients wait until the request times out, as in
	// etcd.
	ContextRefused = "belay-refused"
	// ContextQuorum is the context of a MsgTimeoutNow whose sender stops leading because too few
	// members answered it. Without it the receiver takes the message for an ordinary transfer.
	ContextQuorum = "belay-quorum"
	// ContextEarly is the context of a MsgAppResp that was sent because a disk is slow, not because
	// an append became durable. It promises no more than what is durable, so a leader may treat it
	// as any other.
	ContextEarly = "belay-early"
	// ContextTerm begins the context of a MsgReadIndex; the term in which its sender was when it
	// sent it follows, eight bytes, big-endian. Raft's own message has no term. A leader of that
	// term counts it as the sender's acknowledgment, and needs not ask for one.
	ContextTerm = "belay-term"
)
