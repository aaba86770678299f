package invalidation

// NoteSources is how many sources of notes are remembered, for the test that memory is bounded.
func (e *Engine) NoteSources() int {
	e.notes.mu.Lock()
	defer e.notes.mu.Unlock()
	return len(e.notes.sources)
}

// MaxNoteSources is the bound.
const MaxNoteSources = maxNoteSources
