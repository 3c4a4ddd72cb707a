//go:build !unix

package walfile

// GiveTo has nothing to do: files have no user and group here.
func GiveTo(string, string) error { return nil }
