//go:build !linux

package check

import (
	"context"
	"errors"
	"net"
)

func listenReusing(context.Context, string) (net.Listener, error) { return nil, errors.ErrUnsupported }
