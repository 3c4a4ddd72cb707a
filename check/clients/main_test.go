package clients

import (
	"testing"

	"github.com/belaydb/belay/check"
)

func TestMain(m *testing.M) { check.Main(m) }
