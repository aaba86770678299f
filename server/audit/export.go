package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
)

// line is an event as it is exported. The fields are documented, in this order, in docs/audit.md.
type line struct {
	Time         string          `json:"time"`
	Type         string          `json:"type"`
	Caller       caller          `json:"caller"`
	Invalidation string          `json:"invalidation,omitempty"`
	Target       string          `json:"target,omitempty"`
	Data         json.RawMessage `json:"data,omitempty"`
	Chain        string          `json:"chain"`
	Seq          int64           `json:"seq"`
	PrevHash     string          `json:"prev_hash,omitempty"`
	Hash         string          `json:"hash,omitempty"`
}

type caller struct {
	Kind string `json:"kind"`
	Name string `json:"name,omitempty"`
}

// timeForm has six digits always, so that lines sort by time as texts.
const timeForm = "2006-01-02T15:04:05.000000Z"

// Line is the event as one line of JSON, with its line feed.
func (e Entry) Line() ([]byte, error) {
	l := line{
		Time: e.Time.UTC().Format(timeForm), Type: e.Type, Caller: caller{e.Caller.Kind, e.Caller.Name},
		Target: e.Target, Data: e.Data,
		Chain: e.Chain, Seq: e.Seq, PrevHash: hex.EncodeToString(e.PrevHash), Hash: hex.EncodeToString(e.Hash),
	}
	if e.InvalidationID != "" {
		l.Invalidation = "invalidations/" + e.InvalidationID
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(l)
	return b.Bytes(), err
}

// Position is how far each chain was exported: the last sequence number by chain.
type Position map[string]int64
