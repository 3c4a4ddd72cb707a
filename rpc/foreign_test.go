package rpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// foreign builds a program that others wrote, of a module in testdata, into the user's cache. It skips
// the test without BELAY_INTEROP=1, as in make interop, and where the module cannot be had.
func foreign(t *testing.T, module, pkg string) string {
	t.Helper()
	if os.Getenv("BELAY_INTEROP") == "" {
		t.Skip("runs with BELAY_INTEROP=1, as in make interop")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(cache, "belay-interop", module)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	dir := filepath.Join("testdata", module)
	if msg, err := exec.CommandContext(ctx, "go", "mod", "download", "-C", dir).CombinedOutput(); err != nil {
		t.Skipf("%s cannot be downloaded: %v\n%s", pkg, err, msg)
	}
	if msg, err := exec.CommandContext(ctx, "go", "build", "-C", dir, "-o", out, pkg).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, msg)
	}
	return out
}

// page answers any request, when it is complete, with some bytes.
type page struct{ echo }

func (*page) FullDuplexCall(s grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	if _, err := s.Recv(); err != io.EOF {
		return err
	}
	return s.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: make([]byte, 100)}})
}

// TestH2Spec runs h2spec, with its strict cases, against a server that takes its requests for calls,
// though they are none: a refusal would end their streams before a case has begun. All cases pass.
func TestH2Spec(t *testing.T) {
	program := foreign(t, "h2spec", "github.com/summerwind/h2spec/cmd/h2spec")
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprint("TLS=", secure), func(t *testing.T) {
			o := testOptions()
			o.anyRequest, o.MaxStreams = true, 100
			args := []string{"--strict", "-h", "127.0.0.1", "-P", "/grpc.testing.TestService/FullDuplexCall", "-o", "5"}
			if secure {
				cfg, _ := certificate(t)
				o.Credentials = credentials.NewTLS(cfg)
				args = append(args, "-t", "-k")
			}
			_, port, err := net.SplitHostPort(serve(t, ours(o), &page{}))
			if err != nil {
				t.Fatal(err)
			}
			report := filepath.Join(t.TempDir(), "report.xml")
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
			defer cancel()
			printed, err := exec.CommandContext(ctx, program, append(args, "-p", port, "-j", report)...).CombinedOutput()
			text, readErr := os.ReadFile(report)
			if readErr != nil {
				t.Fatalf("%v, and h2spec: %v\n%s", readErr, err, printed)
			}
			passed, failed := h2specReport(t, text)
			t.Logf("%d cases pass, %d do not", passed, len(failed))
			if passed < 140 && len(failed) == 0 {
				t.Errorf("h2spec has more cases than that: %v\n%s", err, printed)
			}
			for _, name := range slices.Sorted(maps.Keys(failed)) {
				t.Errorf("%s: %s", name, failed[name])
			}
		})
	}
}

// h2specReport reads the report, in JUnit's format.
func h2specReport(t *testing.T, text []byte) (passed int, failed map[string]string) {
	t.Helper()
	var suites struct {
		Suite []struct {
			Case []struct {
				Package string  `xml:"package,attr"`
				Name    string  `xml:"classname,attr"`
				Failure *string `xml:"failure"`
				Error   *string `xml:"error"`
				Skipped *string `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &suites); err != nil {
		t.Fatal(err)
	}
	failed = make(map[string]string)
	for _, s := range suites.Suite {
		for _, c := range s.Case {
			name := c.Package + ": " + c.Name
			switch {
			case c.Failure != nil:
				failed[name] = *c.Failure
			case c.Error != nil:
				failed[name] = *c.Error
			case c.Skipped != nil:
				failed[name] = "skipped: " + *c.Skipped
			default:
				passed++
			}
		}
	}
	return passed, failed
}

// certificate makes one for localhost, and the file of the authority that issued it: itself.
func certificate(t *testing.T) (cfg *tls.Config, caFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"h2"}}, caFile
}

// TestInteropClient runs the client of gRPC's interoperability tests, all cases that need no account
// with a cloud, over TLS and without.
func TestInteropClient(t *testing.T) {
	program := foreign(t, "interop", "google.golang.org/grpc/interop/client")
	for _, secure := range []bool{false, true} {
		o := testOptions()
		var args []string
		if secure {
			cfg, ca := certificate(t)
			o.Credentials = credentials.NewTLS(cfg)
			args = []string{"-use_tls", "-use_test_ca", "-ca_file=" + ca}
		}
		o.MaxRecvBytes = 4 << 20
		host, port, err := net.SplitHostPort(serve(t, ours(o), interopService{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{
			"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server",
			"cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message", "custom_metadata",
			"unimplemented_method", "unimplemented_service", "pick_first_unary", "rpc_soak", "channel_soak",
		} {
			t.Run(fmt.Sprintf("TLS=%v/%s", secure, name), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, program, append(args, "-server_host="+host, "-server_port="+port, "-test_case="+name,
					"-soak_iterations=50", "-soak_per_iteration_max_acceptable_latency_ms=60000", "-soak_overall_timeout_seconds=240")...)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}

// interopService is the service of gRPC's interoperability tests, as doc/interop-test-descriptions.md
// of grpc/grpc has it.
type interopService struct {
	testpb.UnimplementedTestServiceServer
}

const (
	echoHeader  = "x-grpc-test-echo-initial"
	echoTrailer = "x-grpc-test-echo-trailing-bin"
)

// echoed has metadata that the client sent come back.
func echoed(ctx context.Context, header func(metadata.MD) error, trailer func(metadata.MD)) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md[echoHeader]; len(v) > 0 {
		if err := header(metadata.Pairs(echoHeader, v[0])); err != nil {
			return err
		}
	}
	if v := md[echoTrailer]; len(v) > 0 {
		trailer(metadata.Pairs(echoTrailer, v[0]))
	}
	return nil
}

func (interopService) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	return &testpb.Empty{}, nil
}

func (interopService) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	err := echoed(ctx, func(md metadata.MD) error { return grpc.SendHeader(ctx, md) }, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
	if err != nil {
		return nil, err
	}
	if st := in.GetResponseStatus(); st.GetCode() != 0 {
		return nil, status.Error(codes.Code(st.GetCode()), st.GetMessage())
	}
	resp := &testpb.SimpleResponse{Payload: &testpb.Payload{Body: make([]byte, in.GetResponseSize())}}
	if in.GetFillServerId() {
		resp.ServerId = "the only one"
	}
	return resp, nil
}

func (interopService) StreamingOutputCall(in *testpb.StreamingOutputCallRequest, s grpc.ServerStreamingServer[testpb.StreamingOutputCallResponse]) error {
	return outputs(s.Context(), in, s.Send)
}

// outputs sends what is asked for, when it is asked for.
func outputs(ctx context.Context, in *testpb.StreamingOutputCallRequest, send func(*testpb.StreamingOutputCallResponse) error) error {
	for _, p := range in.GetResponseParameters() {
		timer := time.NewTimer(time.Duration(p.GetIntervalUs()) * time.Microsecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		if err := send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: make([]byte, p.GetSize())}}); err != nil {
			return err
		}
	}
	return nil
}

func (interopService) StreamingInputCall(s grpc.ClientStreamingServer[testpb.StreamingInputCallRequest, testpb.StreamingInputCallResponse]) error {
	return (&echo{}).StreamingInputCall(s)
}

func (interopService) FullDuplexCall(s grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	if err := echoed(s.Context(), s.SendHeader, s.SetTrailer); err != nil {
		return err
	}
	for {
		in, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if st := in.GetResponseStatus(); st.GetCode() != 0 {
			return status.Error(codes.Code(st.GetCode()), st.GetMessage())
		}
		if err := outputs(s.Context(), in, s.Send); err != nil {
			return err
		}
	}
}

func (interopService) HalfDuplexCall(s grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	var all []*testpb.StreamingOutputCallRequest
	for {
		in, err := s.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		all = append(all, in)
	}
	for _, in := range all {
		if err := outputs(s.Context(), in, s.Send); err != nil {
			return err
		}
	}
	return nil
}
