package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// machine is what the figures were measured on.
type machine struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	Memory     int64  `json:"memory_bytes"`
	System     string `json:"system"`
	Kernel     string `json:"kernel"`
	Go         string `json:"go"`
	FileSystem string `json:"file_system"` // of the journals
	// Fsync is the median of what appendDurably takes, over the whole run.
	Fsync time.Duration `json:"fsync_ns"`
}

// describeMachine says what can be found out; where there is no /proc that is less.
func describeMachine(dir string) machine {
	m := machine{Cores: runtime.NumCPU(), System: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(), CPU: field("/proc/cpuinfo", "model name")}
	kb, _ := strconv.ParseInt(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB"), 10, 64)
	m.Memory = kb << 10
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(release))
	}
	m.FileSystem = fileSystem(dir)
	return m
}

// field reads the first value of a name in a file of "name: value" lines.
func field(file, name string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// fileSystem is the type of the one that holds a directory: that of the longest mount point above it.
func fileSystem(dir string) (kind string) {
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return ""
	}
	longest := 0
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[1]) < longest {
			continue
		}
		if at := strings.TrimSuffix(f[1], "/") + "/"; strings.HasPrefix(dir+"/", at) {
			longest, kind = len(f[1]), f[2]
		}
	}
	return kind
}

// String is one line.
func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores, %.1f GiB, %s, kernel %s, %s, journals on %s", m.CPU, m.Cores, float64(m.Memory)/(1<<30), m.System, m.Kernel, m.Go, m.FileSystem)
}

// appendDurably measures n times how long it takes to append a few bytes to a file in a directory and have them on the
// disk. A commit of the journal cannot take less.
func appendDurably(dir string, n int) (took []time.Duration, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "fsync"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	line := make([]byte, 128)
	for range n {
		began := time.Now()
		if _, err := f.Write(line); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}
