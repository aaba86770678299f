package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	// grace is how long an interrupted command still waits to hear whether its call was accepted.
	grace = 2 * time.Second
	// secondTry is how long a repeated call may take whose first answer was lost.
	secondTry = 5 * time.Second
)

// accept makes a call that begins an invalidation, under a request id. If its answer is lost it is repeated once, which
// begins nothing new; if that does not help either, the error says that nothing is known.
func accept[R any](ctx context.Context, requestID string, call func(context.Context, ...grpc.CallOption) (R, error)) (R, error) {
	asking, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	defer stop()
	var to peer.Peer
	resp, err := call(asking, grpc.Peer(&to))
	if err == nil || to.Addr == nil || !unknown(err) { // without a peer it never left this machine
		return resp, err
	}
	again, cancel := context.WithTimeout(asking, secondTry)
	defer cancel()
	resp, repeated := call(again, grpc.WaitForReady(true))
	if repeated == nil || status.Code(repeated) == codes.AlreadyExists { // then it is another call that has the id
		return resp, repeated
	}
	if !unknown(repeated) { // why the second was refused says nothing of the first, but is what to mend
		err = repeated
	}
	return resp, &exitError{exitNotAccepted, errors.New(describe(err) +
		fmt.Sprintf("\n  It is not known whether the call was accepted. Repeat it with --request-id %s: that begins nothing new if it was.", requestID))}
}

// unknown reports whether a call may have been accepted although it has an error: the gateway says so, or it is not the
// gateway that speaks.
func unknown(err error) bool {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == "endsession" {
			return info.GetReason() == "ACCEPTANCE_UNKNOWN"
		}
	}
	switch st.Code() {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.Unknown:
		return true
	}
	return false
}
