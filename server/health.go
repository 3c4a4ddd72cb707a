package server

import (
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// registerHealth serves grpc.health.v1: the service "" is serving from the start on, also during a
// defragmentation, since none blocks here.
func registerHealth(g grpc.ServiceRegistrar, h *health.Server, logger *zap.Logger) {
	healthpb.RegisterHealthServer(g, h)
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	logger.Info("grpc service status changed",
		zap.String("service", ""), zap.String("status", healthpb.HealthCheckResponse_SERVING.String()))
}
