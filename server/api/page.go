package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
)

// A page token is a version, the ID of the page's last invalidation, and a digest of the filters, so that a token
// carried over to another question is refused instead of quietly leaving something out. It grants nothing: whoever may
// not read an invalidation does not see it on any page.
const (
	pageTokenVersion = 1
	filterDigestSize = 8
)

var pageEncoding = base64.RawURLEncoding.Strict()

// filterDigest identifies what a list was asked for, except for the page.
func filterDigest(req *endsessionv1.ListInvalidationsRequest) ([]byte, error) {
	filters := proto.CloneOf(req)
	filters.PageSize, filters.PageToken = 0, ""
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(filters)
	if err != nil {
		return nil, fmt.Errorf("marshal filters: %w", err)
	}
	sum := sha256.Sum256(b)
	return sum[:filterDigestSize], nil
}

func pageToken(req *endsessionv1.ListInvalidationsRequest, last string) (string, error) {
	id, err := uuid.Parse(last)
	if err != nil {
		return "", fmt.Errorf("id of the last invalidation: %w", err)
	}
	digest, err := filterDigest(req)
	if err != nil {
		return "", err
	}
	return pageEncoding.EncodeToString(append(append([]byte{pageTokenVersion}, id[:]...), digest...)), nil
}

func readPageToken(req *endsessionv1.ListInvalidationsRequest) (before string, err error) {
	refuse := func(why string) error {
		return Refusal(Violation{Field: "page_token", Description: why}).Err()
	}
	b, err := pageEncoding.DecodeString(req.GetPageToken())
	if err != nil || len(b) != 1+len(uuid.UUID{})+filterDigestSize || b[0] != pageTokenVersion {
		return "", refuse("is not a next_page_token of an answer")
	}
	digest, err := filterDigest(req)
	if err != nil {
		return "", err
	}
	id, b := uuid.UUID(b[1:1+len(uuid.UUID{})]), b[1+len(uuid.UUID{}):]
	if !bytes.Equal(b, digest) {
		return "", refuse("belongs to a list with other filters")
	}
	return id.String(), nil
}
