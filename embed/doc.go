// Package embed runs members of Belay inside a Go program: one, or a whole cluster, on disk or in
// memory.
//
//	m, err := embed.Start(ctx, embed.Options{Dir: "data", ClientURLs: []string{"http://127.0.0.1:2379"}})
//	if err != nil {
//		return err
//	}
//	defer m.Stop()
//	client, err := m.Client()
//
// It is the server of `belay server` with the same flags (Options.Flags), files and promises; what
// one leaves in a data directory the other goes on with. What belongs to the process is left to the
// program: signals, GOGC and GOMEMLIMIT, the limit of open files, grpc's process-wide logger. With
// --heal the command starts a damaged member again, so a program cannot set it.
//
// Package belaytest, beside this one, has clusters for tests, with faults to inject and, in a bubble
// of testing/synctest, in virtual time.
//
// # Stability
//
// What this package and belaytest export stays as it is within a major version, but that structs
// may get fields whose zero value means what was before. Everything else of this module is
// internal, whatever its path says: it changes with any commit.
//
// # Files
//
//	embed.go        Options, Start, Member, StartCluster, Cluster
//	internal/local  flags to a member; the network inside the process
package embed
