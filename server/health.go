package server

import (
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// registerHealth serves grpc.health.v1: the service "" serves from the start
// on. It never stops serving for a defragmentation, since none blocks here.
func (s *Server) registerHealth(g *grpc.Server) {
	healthpb.RegisterHealthServer(g, s.health)
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	s.logger.Info("grpc service status changed",
		zap.String("service", ""), zap.String("status", healthpb.HealthCheckResponse_SERVING.String()))
}

// Health is the grpc health service, for a node that shuts down.
func (s *Server) Health() *health.Server { return s.health }
