// Package storetest is the one suite of laws that every journal obeys: what [invalidation.Store] promises, said in tests.
//
// The laws know a store only by its interface and a [Harness]. They never look at the process's clock, so that they hold
// in virtual time as well as against a database server's clock; where time must pass they ask the harness.
package storetest

import (
	"testing"
	"time"

	"github.com/endsession/endsession/server/audit"
	"github.com/endsession/endsession/server/invalidation"
)

// Harness is what the suite needs of a kind of store beside the interface.
type Harness struct {
	// Open returns a store on a new, empty journal. It is closed, and the journal removed, when the test ends.
	Open func(t testing.TB) invalidation.Store
	// Second opens another process's store on s's journal. It is nil if only one process at a time may write.
	Second func(t testing.TB, s invalidation.Store) invalidation.Store
	// Reopen returns a store on what would be left of s's journal if its process were killed now. s is not used any more.
	Reopen func(t testing.TB, s invalidation.Store) invalidation.Store
	// Crash opens a store on a new journal, calls before with it, and then change. For every point at which the process or
	// its machine may die while change is under way, and for the moment after it has returned, it calls after with a store on
	// what that would leave behind.
	Crash func(t testing.TB, before func(invalidation.Store), change func(invalidation.Store) error, after func(s invalidation.Store, returned bool))
	// Events returns all audit events of s's journal, in order, without those that chains write about themselves. It
	// verifies the trail first: see [Verify].
	Events func(t testing.TB, s invalidation.Store) []invalidation.Event
	// Trail returns the audit trail of s's journal as it is now.
	Trail func(t testing.TB, s invalidation.Store) audit.Journal
	// Keyed opens a store that hashes under keys, on a new journal or, if s is not nil, on s's as another process does; s is
	// not used any more.
	Keyed func(t testing.TB, s invalidation.Store, keys audit.Keys) invalidation.Store
	// Link has the store link its chains to others now. It is nil if it does when it begins one.
	Link func(t testing.TB, s invalidation.Store)
	// Tamper puts other events and checkpoints in the place of those in s's journal, as who can write to the database can:
	// it goes round the store and all that the schema refuses. s can still be used.
	Tamper func(t testing.TB, s invalidation.Store, events []audit.Entry, checkpoints []audit.Checkpoint)
	// Pass returns when d has passed on the store's clock.
	Pass func(t testing.TB, d time.Duration)
	// Lease is a length of lease that can be waited for with Pass, but not exceeded by accident.
	Lease time.Duration
	// Around runs a law, for example in a bubble of virtual time; nil runs it as it is.
	Around func(t *testing.T, law func(t *testing.T))
}

// process returns a store of another process on the journal, or s itself if there can be no other.
func (h Harness) process(t testing.TB, s invalidation.Store) invalidation.Store {
	if h.Second == nil {
		return s
	}
	return h.Second(t, s)
}

// Run holds a kind of store against all laws.
func Run(t *testing.T, h Harness) {
	if h.Around == nil {
		h.Around = func(t *testing.T, law func(*testing.T)) { law(t) }
	}
	for _, law := range laws {
		t.Run(law.name, func(t *testing.T) {
			t.Parallel()
			h.Around(t, func(t *testing.T) { law.check(t, h) })
		})
	}
}

// laws are the suite, in the order of the interface's methods.
var laws = []struct {
	name  string
	check func(t *testing.T, h Harness)
}{
	{"Now/IsUTCInMicroseconds", nowIsUTC},
	{"Accept/KeepsEverything", acceptKeepsEverything},
	{"Accept/KeepsStringsByteByByte", acceptKeepsStrings},
	{"Accept/BeginsTheRunsToStart", acceptBegins},
	{"Accept/MayBeFinalAtOnce", acceptMayBeFinal},
	{"Accept/RefusesRunsUnderWay", acceptRefusesRunsUnderWay},
	{"Accept/RefusesAnIDTwice", acceptRefusesAnIDTwice},
	{"Accept/ReplaysARequest", acceptReplays},
	{"Accept/ReplaysToManyAtOnce", acceptReplaysToMany},
	{"Claim/BeginsAndContinuesAttempts", claimBegins},
	{"Claim/TakesWhatIsDueInOrder", claimOrder},
	{"Claim/WaitsForTheNextAttemptTime", claimWaits},
	{"Claim/TakesOnlyExpiredRunsIfAsked", claimExpiredOnly},
	{"Claim/NeverHandsARunToTwo", claimNeverHandsARunToTwo},
	{"Claim/TakesOverWhenTheLeaseEnds", claimTakesOver},
	{"Claim/ResumesAfterACrash", claimResumes},
	{"Record/KeepsTheAnswer", recordKeepsTheAnswer},
	{"Record/RefusesWhatTheTableForbids", recordRefusesIllegal},
	{"Record/ComputesTheState", recordComputesTheState},
	{"Record/WritesEventsWithTheChange", recordWritesEvents},
	{"Record/OfRunsThatBeganAtOnce", recordOfStarted},
	{"Record/OfWhateverBeganAtOnce", recordOfWhateverBegan},
	{"Record/BesideWhatIsRefused", recordBesideWhatIsRefused},
	{"Renew/ProlongsLeases", renewProlongs},
	{"Release/TakesTheClaimBack", releaseTakesBack},
	{"Cancel/EndsEveryRun", cancelEndsEveryRun},
	{"Cancel/RefusesTheLateAnswer", cancelRefusesTheLateAnswer},
	{"Cancel/OfWhatIsNotThereOrFinal", cancelOfFinal},
	{"Get/OfWhatIsNotThere", getNotFound},
	{"List/Filters", listFilters},
	{"List/PagesAreStable", listPages},
	{"Unfinished/CountsByTarget", unfinishedCounts},
	{"Hasten/TakesWhatWaitsForTheReason", hastenTakesWhatWaits},
	{"Pause/ComesAndGoes", pauseComesAndGoes},
	{"Audit/KeepsEvents", auditKeepsEvents},
	{"Audit/ChainsEveryEvent", auditChains},
	{"Audit/ChainsWhatIsWrittenAtOnce", auditChainsAtOnce},
	{"Audit/LinksToEarlierChains", auditLinks},
	{"Audit/TamperingIsFound", auditTampering},
	{"Audit/KeysRotate", auditKeysRotate},
	{"Prune/RemovesOnlyWhatHasEnded", pruneRemoves},
	{"PruneAudit/LeavesACheckpoint", pruneAuditLeavesACheckpoint},
	{"PruneAudit/RemovesPartOfAChain", pruneAuditRemovesAPart},
	{"PruneAudit/KeepsEvidence", auditKeepsEvidence},
	{"Slots/AreHeldByOne", slotsAreHeldByOne},
	{"Slots/EndWithTheirLease", slotsEndWithTheirLease},
	{"OnChange/IsCalledAfterTheCommit", onChangeAfterCommit},
	{"Context/ItsEndChangesNothing", contextEnded},
	{"Close/EndsEverything", closeEnds},
	{"Crash/AcceptIsAllOrNothing", crashAccept},
	{"Crash/ClaimIsAllOrNothing", crashClaim},
	{"Crash/RecordIsAllOrNothing", crashRecord},
	{"Crash/CancelIsAllOrNothing", crashCancel},
	{"Load/EndsConsistent", loadEndsConsistent},
}
