package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// Credentials pass to a grpc.Server what a Front knows about a connection: its TLS state, with the
// verified certificates, as credentials.TLSInfo; without TLS, nothing. They make no handshake.
func Credentials() credentials.TransportCredentials { return found{} }

type found struct{}

func (found) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if c, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		return conn, credentials.TLSInfo{
			State:          c.ConnectionState(),
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		}, nil
	}
	return conn, open{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
}

// open is a connection without TLS.
type open struct{ credentials.CommonAuthInfo }

func (open) AuthType() string { return "insecure" }

func (found) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("listen: server credentials dial nowhere")
}

func (found) Info() credentials.ProtocolInfo          { return credentials.ProtocolInfo{} }
func (found) Clone() credentials.TransportCredentials { return found{} }
func (found) OverrideServerName(string) error         { return nil }
