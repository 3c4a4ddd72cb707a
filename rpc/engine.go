package rpc

import (
	"os"
	"strings"
)

// The engines of --rpc-engine: what serves gRPC to clients of a member or a proxy.
const (
	EngineBelay = "belay" // this package
	EngineGRPC  = "grpc-go"
)

// Engine is what serves when the flag says this; empty: EngineBelay. What GODEBUG=http2debug=1 or 2
// prints, each frame and each header, grpc-go's framer prints: who asks for it wants those lines.
func Engine(flag string) string {
	if flag == EngineGRPC || strings.Contains(os.Getenv("GODEBUG"), "http2debug=") {
		return EngineGRPC
	}
	return EngineBelay
}
