// Package config is the part of `belay doctor config` that decides: what a member's configuration
// should be, with the reason for each setting (plan.go), in four forms (write.go); and what is wrong
// with one that exists (check.go), which is read from any of the forms that people have (read.go).
//
// It opens no file and asks no network: what was measured comes in as Measured, what a host knows as
// Host. What Plan prints passes Check without a finding.
//
// Files: read.go (forms, with the lines of settings), flags.go (names that are known, renamed or
// gone), check.go (findings), plan.go (settings and reasons), write.go (forms).
package config
