package adapters

// Reason is the machine-readable why of an error or a warning. One list serves runs, warnings and calls; it is part
// of the public API, so a reason is never renamed and never reused.
type Reason string

// Reasons why a run could not be carried out exactly as asked.
const (
	// ReasonSelectorUnsupported: the target cannot express the selector without matching more.
	ReasonSelectorUnsupported Reason = "SELECTOR_UNSUPPORTED"
	// ReasonUnknownProvider: the named provider is neither mapped nor listed by the target.
	ReasonUnknownProvider Reason = "UNKNOWN_PROVIDER"
	// ReasonUnknownGroup: the group is not mapped, or the directory or the target does not know it.
	ReasonUnknownGroup Reason = "UNKNOWN_GROUP"
	// ReasonUnknownScope: a configured or mapped name (cluster, access group, device) does not exist at the target.
	ReasonUnknownScope Reason = "UNKNOWN_SCOPE"
	// ReasonDeviceOutOfScope: a session was named on a device that the target's configuration does not cover.
	ReasonDeviceOutOfScope Reason = "DEVICE_OUT_OF_SCOPE"
	// ReasonNoIdentity: no expression yields a name for the user at this target.
	ReasonNoIdentity Reason = "NO_IDENTITY"
	// ReasonAmbiguousIdentity: the caller and the directory disagree, or two entries fit one person.
	ReasonAmbiguousIdentity Reason = "AMBIGUOUS_IDENTITY"
	// ReasonTooManyMembers: the group has more members than the mapping allows.
	ReasonTooManyMembers Reason = "TOO_MANY_MEMBERS"
	// ReasonDirectoryUnavailable: the directory does not answer; the run waits and is resolved once, later.
	ReasonDirectoryUnavailable Reason = "DIRECTORY_UNAVAILABLE"
	// ReasonProtected: the selector names, or may match, a protected user.
	ReasonProtected Reason = "PROTECTED"
	// ReasonNamesNotAllowed: the caller may give a user id but not other names.
	ReasonNamesNotAllowed Reason = "NAMES_NOT_ALLOWED"
	// ReasonPolicyDenied: the policy does not allow the call, or no longer allows the run.
	ReasonPolicyDenied Reason = "POLICY_DENIED"
	// ReasonTooManySessions: more sessions match than the caller may end, or it cannot be known how many do.
	ReasonTooManySessions Reason = "TOO_MANY_SESSIONS"
)

// Reasons that come from the upstream.
const (
	ReasonUpstreamUnauthenticated Reason = "UPSTREAM_UNAUTHENTICATED"
	ReasonUpstreamDenied          Reason = "UPSTREAM_DENIED"
	ReasonUpstreamUnreachable     Reason = "UPSTREAM_UNREACHABLE"
	ReasonUpstreamBusy            Reason = "UPSTREAM_BUSY"
	ReasonUpstreamRejected        Reason = "UPSTREAM_REJECTED"
	// ReasonUpstreamFailed: the target accepted the work and reports that it failed, wholly or in part.
	ReasonUpstreamFailed   Reason = "UPSTREAM_FAILED"
	ReasonUpstreamBadReply Reason = "UPSTREAM_BAD_REPLY"
	// ReasonOutcomeUnknown: something may have been sent and nobody can tell whether it took effect.
	ReasonOutcomeUnknown Reason = "OUTCOME_UNKNOWN"
	// ReasonStillAlive: sessions seen before the kill are there afterwards.
	ReasonStillAlive Reason = "STILL_ALIVE"
)

// Reasons that come from the engine.
const (
	ReasonExpired       Reason = "EXPIRED"
	ReasonCancelled     Reason = "CANCELLED"
	ReasonTargetChanged Reason = "TARGET_CHANGED"
	ReasonTargetRemoved Reason = "TARGET_REMOVED"
	ReasonInternal      Reason = "INTERNAL"
)

// Reasons used only in warnings.
const (
	// WarnNoSessionMatched: the target found nothing; a typo and a signed-out person look the same.
	WarnNoSessionMatched Reason = "NO_SESSION_MATCHED"
	// WarnNothingCanMatch: the selector provably matches nothing here; nothing was sent.
	WarnNothingCanMatch Reason = "NOTHING_CAN_MATCH"
	// WarnSignedInAgain: sessions began while the kill went on; they are left alone.
	WarnSignedInAgain Reason = "SIGNED_IN_AGAIN"
	// WarnIdentityOpaque: the target lists users under names that cannot be known in advance.
	WarnIdentityOpaque Reason = "IDENTITY_OPAQUE"
	// WarnPassiveDevice: a device that belongs to a cluster is addressed directly; a passive unit ends nothing.
	WarnPassiveDevice Reason = "PASSIVE_DEVICE"
	// WarnScopeIncomplete: part of a named scope is out of the target's reach; sessions there are left alive.
	WarnScopeIncomplete Reason = "SCOPE_INCOMPLETE"
	// WarnNotInDirectory: the directory does not know the user; the given names were used.
	WarnNotInDirectory Reason = "NOT_IN_DIRECTORY"
	// WarnOtherSessionEnded: the target reports having ended, or being about to end, a session that the selector does not
	// match.
	WarnOtherSessionEnded Reason = "OTHER_SESSION_ENDED"
)
