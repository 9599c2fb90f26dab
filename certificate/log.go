package certificate

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// logCore takes CertMagic's log, which tells of every step: what went wrong is a warning, the rest is for debugging.
type logCore struct {
	logger *slog.Logger
}

func level(l zapcore.Level) slog.Level {
	if l >= zapcore.ErrorLevel {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Enabled tells whether a level is logged at all.
func (c *logCore) Enabled(l zapcore.Level) bool {
	return c.logger.Enabled(context.Background(), level(l))
}

// With adds fields to all that follows.
func (c *logCore) With(fields []zapcore.Field) zapcore.Core {
	return &logCore{logger: c.logger.With(values(fields)...)}
}

// Check adds the core to an entry that is to be logged.
func (c *logCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write logs an entry.
func (c *logCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	c.logger.Log(context.Background(), level(entry.Level), "certificates: "+entry.Message, values(fields)...)
	return nil
}

// Sync does nothing: entries are not held back.
func (c *logCore) Sync() error { return nil }

// values are a log's fields as keys and values, one after the other.
func values(fields []zapcore.Field) []any {
	var all []any
	for _, field := range fields {
		encoder := zapcore.NewMapObjectEncoder()
		field.AddTo(encoder)
		for key, value := range encoder.Fields {
			all = append(all, key, value)
		}
	}
	return all
}
