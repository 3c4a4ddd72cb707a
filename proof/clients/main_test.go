package clients

import (
	"testing"

	"github.com/belaydb/belay/proof/check"
)

func TestMain(m *testing.M) { check.Main(m) }
