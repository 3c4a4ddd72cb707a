package traffic

import (
	"math/rand"
	"os"
)

// format is that of a value, which is a number. With BELAY_LARGE_VALUES some are so long that Belay's
// store keeps them in files of their own, and some so long that writes wait for each other. What is
// written in a scenario must fit into the log that a member keeps, 32 MiB.
func format() string {
	if os.Getenv("BELAY_LARGE_VALUES") == "" {
		return "%d"
	}
	switch n := rand.Intn(16); {
	case n == 0:
		return "%020480d"
	case n < 4:
		return "%08192d"
	}
	return "%d"
}
