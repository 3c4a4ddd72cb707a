//go:build !linux

package cluster

import "os/exec"

// setParentDeath has no counterpart here: a member may outlive a killed test.
func setParentDeath(*exec.Cmd) {}
