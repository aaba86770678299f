//go:build race

package alloctest

// race says that the race detector is on.
const race = true
