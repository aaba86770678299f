package config

import (
	"errors"
	"log/slog"
)

// Log is what is told to whoever operates the gateway, on standard error.
type Log struct {
	// Format is text or json, or auto: text on a terminal, otherwise json. Default: auto.
	Format LogFormat `yaml:"format"`
	// Level is the least that is told: debug, info, warn or error. Default: info.
	Level LogLevel `yaml:"level"`
}

// SetDefaults implements [strictyaml.Defaulter].
func (l *Log) SetDefaults() { l.Format, l.Level = LogAuto, LogLevel(slog.LevelInfo) }

// LogFormat is how a line of the log is written.
type LogFormat string

// How a line of the log is written.
const (
	LogAuto LogFormat = "auto"
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// UnmarshalText reads a format.
func (f *LogFormat) UnmarshalText(text []byte) error {
	switch x := LogFormat(text); x {
	case LogAuto, LogText, LogJSON:
		*f = x
		return nil
	}
	return errors.New("want auto, text or json")
}

// LogLevel is how important a line is.
type LogLevel slog.Level

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// UnmarshalText reads a level.
func (l *LogLevel) UnmarshalText(text []byte) error {
	level, ok := logLevels[string(text)]
	if !ok {
		return errors.New("want debug, info, warn or error")
	}
	*l = LogLevel(level)
	return nil
}

// String writes the level as it is read.
func (l LogLevel) String() string {
	for name, level := range logLevels {
		if level == slog.Level(l) {
			return name
		}
	}
	return slog.Level(l).String()
}

// MarshalYAML writes the level as it is read.
func (l LogLevel) MarshalYAML() (any, error) { return l.String(), nil }
