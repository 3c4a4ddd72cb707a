package relay

import (
	"context"

	"go.uber.org/zap"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/encoding/protojson"
)

// logger logs messages, with etcd's lines; nil logs none. What Auth's messages say is left out: it
// has passwords and tokens (etcd logs them).
type payloadLog struct{ logger *zap.Logger }

func (l *payloadLog) request(ctx context.Context, m *method, b []byte) {
	if l != nil {
		l.log(ctx, m, "received payload logged as grpc.request.content field", "grpc.request.content", b, true)
	}
}

func (l *payloadLog) answer(ctx context.Context, m *method, b []byte) {
	if l != nil {
		l.log(ctx, m, "returned response payload logged as grpc.response.content field", "grpc.response.content", b, false)
	}
}

func (l *payloadLog) log(ctx context.Context, m *method, message, field string, b []byte, request bool) {
	content := ""
	if m.request != nil && m.service != "etcdserverpb.Auth" {
		kind := m.answer
		if request {
			kind = m.request
		}
		if decoded, err := decode(kind, b); err == nil {
			if text, err := protojson.Marshal(decoded); err == nil {
				content = string(text)
			}
		}
	}
	fields := []zap.Field{zap.String(field, content), zap.String("grpc.service", m.service), zap.String("grpc.method", m.name)}
	if p, ok := peer.FromContext(ctx); ok {
		fields = append(fields, zap.String("peer.address", p.Addr.String()))
	}
	l.logger.Info(message, fields...)
}
