package node

import (
	"context"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	tracesdk "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/server"
)

// Tracing is --enable-distributed-tracing and its related flags.
type Tracing struct {
	Address     string // host:port of an OTLP collector, spoken to without TLS
	ServiceName string
	InstanceID  string // empty: none
	// PerMillion is how many of a million calls without a span are sampled; calls with one follow
	// it.
	PerMillion int
}

const perMillion = 1e6

// startTracing sets n.tracing and n.stopTracing. Nothing waits for the collector:
// spans go out in batches, and are dropped when there are too many.
func (n *Node) startTracing(t *Tracing) error {
	ctx := context.Background()
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithInsecure(), otlptracegrpc.WithEndpoint(t.Address))
	if err != nil {
		return err
	}
	attributes := []attribute.KeyValue{attribute.String("service.name", t.ServiceName)}
	if t.InstanceID != "" {
		attributes = append(attributes, attribute.String("service.instance.id", t.InstanceID))
	}
	sampler := tracesdk.NeverSample()
	if t.PerMillion > 0 {
		sampler = tracesdk.TraceIDRatioBased(float64(t.PerMillion) / perMillion)
	}
	provider := tracesdk.NewTracerProvider(tracesdk.WithBatcher(exporter),
		tracesdk.WithResource(resource.NewSchemaless(attributes...)), tracesdk.WithSampler(tracesdk.ParentBased(sampler)))
	n.tracing = &server.Tracing{
		Tracer: provider.Tracer("go.etcd.io/etcd"), // etcd's name, which dashboards select by
		Option: grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
			otelgrpc.WithTracerProvider(provider))),
	}
	n.stopTracing = func() {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			n.logger.Warn("the last spans could not be sent", zap.Error(err))
		}
	}
	n.logger.Debug("distributed tracing enabled", zap.String("address", t.Address), zap.String("service-name", t.ServiceName),
		zap.String("service-instance-id", t.InstanceID), zap.Int("sampling-rate", t.PerMillion))
	n.logger.Info("distributed tracing setup enabled")
	return nil
}
