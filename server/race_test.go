//go:build race

package server_test

// raceDetector says that the race detector is on: what is instrumented allocates otherwise.
const raceDetector = true
