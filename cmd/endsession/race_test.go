//go:build race

package main

// raceDetector says that the race detector is on: it makes the scheduler choose at random.
const raceDetector = true
