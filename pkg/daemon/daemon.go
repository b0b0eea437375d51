// Package daemon is what the agent and the coordinator have in common: a version, and a
// log.
package daemon

import (
	"fmt"
	"runtime/debug"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// version is set by who builds a package without version control:
// -ldflags "-X github.com/medway-lb/medway/pkg/daemon.version=v1.2.3".
var version string

// Version is the version of this build: what the linker was told, the tag, or else the
// time and hash of the commit that it was built from, with "+dirty" where that is not all
// of it.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unknown" // built without version control
}

// Logger makes a log on standard error, as the flags --log-level and --log-format say.
func Logger(level, format string) (*zap.Logger, error) {
	parsed, err := zap.ParseAtomicLevel(level)
	if err != nil {
		return nil, fmt.Errorf("flag --log-level: value %q: expected debug, info, warn or error", level)
	}
	c := zap.NewProductionConfig()
	c.Level, c.Sampling, c.DisableCaller, c.DisableStacktrace = parsed, nil, true, true
	c.EncoderConfig.EncodeTime = zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000Z07:00")
	switch format {
	case "json":
	case "console":
		c.Encoding = "console"
		c.EncoderConfig.ConsoleSeparator = " "
		c.EncoderConfig.EncodeLevel = zapcore.CapitalLevelEncoder
	default:
		return nil, fmt.Errorf("flag --log-format: value %q: expected console or json", format)
	}
	return c.Build()
}
