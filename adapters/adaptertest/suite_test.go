package adaptertest_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters/adaptertest"
)

func TestSuitePassesASoundAdapter(t *testing.T) { adaptertest.Run(t, harness("")) }

// flawVariable names the flaw of the adapter that TestFlawed runs the suite on, in a process of its own.
const flawVariable = "ADAPTERTEST_FLAW"

func TestFlawed(t *testing.T) {
	f := os.Getenv(flawVariable)
	if f == "" {
		t.Skip("runs as a child of TestSuiteFailsAFlawedAdapter")
	}
	adaptertest.Run(t, harness(flaw(f)))
}

// Each flaw must be found by the subtest whose promise it breaks.
func TestSuiteFailsAFlawedAdapter(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		flaw flaw
		by   string // the subtest, as a pattern of -test.run
		says string
	}{
		{"folds case", "EndsExactlyTheMatchedSessions/^user$", "ENDED A SESSION IT MUST NOT"},
		{"matches prefixes", "EndsExactlyTheMatchedSessions/^user$", "ENDED A SESSION IT MUST NOT"},
		{"trims names", "EndsExactlyTheMatchedSessions/^user$", "ENDED A SESSION IT MUST NOT"},
		{"forgets where a user is bound", "EndsExactlyTheMatchedSessions/^user$", "ENDED A SESSION IT MUST NOT"},
		{"blames the password", "ProbeReportsWhatIsWrong", "credentials refused: true, want false"},
		{"gives no advice", "ProbeReportsWhatIsWrong", "no remedy"},
		{"ignores the provider's name", "EndsExactlyTheMatchedSessions/^provider$", "ENDED A SESSION IT MUST NOT"},
		{"takes or for and", "EndsExactlyTheMatchedSessions/^user\\+group$", "ENDED A SESSION IT MUST NOT"},
		{"skips a place", "EndsExactlyTheMatchedSessions/^all$", "complete, but still signed in"},
		{"does not warn", "EndsExactlyTheMatchedSessions/^user$", "does not warn that no session matched"},
		{"counts twice", "EndsExactlyTheMatchedSessions/^all$", "but 53 ended"},
		{"previews something else", "EndsExactlyTheMatchedSessions/^all$", "sent, but not planned"},
		{"acts in the preview", "EndsExactlyTheMatchedSessions/^all$", "which can end sessions"},
		{"logs a secret", "EndsExactlyTheMatchedSessions/^all$", "the log shows a secret"},
		{"journals a secret", "EndsExactlyTheMatchedSessions/^all$", "the result shows a secret"},
		{"forgets the verification", "EndsExactlyTheMatchedSessions/^all$", "complete with verification 0"},
		{"makes its resume wrong", "EndsExactlyTheMatchedSessions/^all$", "is no JSON"},
		{"does not fence", "EndsExactlyTheMatchedSessions/^all$", "without asking the fence"},
		{"fences the wrong request", "EndsExactlyTheMatchedSessions/^all$", "without asking the fence"},
		{"has no limit", "EndsExactlyTheMatchedSessions/^all$", "without asking the limit"},
		{"bypasses the limit", "EndsExactlyTheMatchedSessions/^all$", "without asking the limit"},
		{"repeats for ever", "EndsExactlyTheMatchedSessions/^all$", "not complete after"},
		{"supports undeclared criteria", "RefusesCriteriaItDoesNotDeclare", "that the type does not declare"},
		{"sends what it does not support", "RefusesCriteriaItDoesNotDeclare", "which can end sessions"},
		{"tries unlisted providers", "RefusesProvidersThatMustBeListedAndAreNot", "want unsupported"},
		{"does not see that nothing can match", "SaysWhenNothingCanMatchAndSendsNothing", "nothing can match"},
		{"warns too easily", "CrashAtAnyRequestLosesNothing/^user$", "warns that nothing matched"},
		{"believes its memory", "CrashAtAnyRequestLosesNothing/^user$", "complete, but still signed in"},
		{"takes an error for success", "FaultYieldsItsKind/^all$", "complete, but still signed in"},
		{"swallows 500", "FaultYieldsItsKind/^all$", "counts 8, but 7 ended"},
		{"counts what it tried", "FaultYieldsItsKind/^all$", "but 7 ended"},
		{"loses the count beside an error", "FaultYieldsItsKind/^all$", "as if that were all"},
		{"calls a lost answer unreachable", "FaultYieldsItsKind/^all$", "want one of"},
		{"shows the upstream's body", "FaultYieldsItsKind/^all$", "shows an upstream's body"},
		{"puts a secret into an error", "FaultYieldsItsKind/^all$", "the error shows a secret"},
		{"takes null for an empty list", "FaultYieldsItsKind/^all$", "complete, but still signed in"},
		{"outlives its context", "DeadlineEndsTheCall/^all$", "the call went on for"},
		{"outlives its context", "CancellationEndsTheCall/^all$", "the call went on for"},
		{"pursues newcomers", "SessionsThatBeginMeanwhileDoNotHoldTheRunUp/^all$", "it pursues whoever signs in"},
		{"keeps newcomers to itself", "SessionsThatBeginMeanwhileDoNotHoldTheRunUp/^all$", "SIGNED_IN_AGAIN"},
		{"trims names", "CarriesEveryValueExactlyOrRefusesIt/^user$", "but still signed in"},
		{"matches prefixes", "CarriesEveryValueExactlyOrRefusesIt/^user\\+group$", "ENDED A SESSION IT MUST NOT"},
		{"ignores the provider's name", "CarriesEveryValueExactlyOrRefusesIt/^provider$", "ENDED A SESSION IT MUST NOT"},
		{"previews something else", "SendsWhatThePreviewShows", "sent, but not planned"},
		{"acts in the preview", "SendsWhatThePreviewShows", "the preview sent"},
		{"folds case", "SendsWhatThePreviewShows", "ENDED A SESSION IT MUST NOT"},
		{"keeps newcomers to itself", "SomebodySignsInAgainInEveryGap/^all$", "SIGNED_IN_AGAIN"},
		{"does not look again", "LiesAreNotBelieved/^KeepsWhatItSaysItEnded$", "complete, CONFIRMED_BY_LIST, but still signed in"},
		{"calls what it cannot know unverifiable", "LiesAreNotBelieved/^ListsNothing$", "complete, UNVERIFIABLE, but still signed in"},
		{"goes on when another ended", "LiesAreNotBelieved/^EndsMore$", "after the target had told"},
		{"acts in the probe", "ProbeEndsNobody", "which can end sessions"},
		{"is always healthy", "ProbeReportsWhatIsWrong", "healthy:"},
		{"blames the password", "ProbeReportsWhatIsWrong", "credentials refused: true, want false"},
		{"gives no advice", "ProbeReportsWhatIsWrong", "no remedy"},
		{"ignores the provider's name", "EndsNobodyUnderNamesTheTargetDoesNotHave", "ENDED A SESSION IT MUST NOT"},
		{"does not warn", "RepeatIsHarmless/^user$", "the second time"},
		{"believes its memory", "StormOfFaultsEndsRight/^user$", "complete, but still signed in"},
		{"does not fence", "FenceStopsEveryRequestThatEndsSessions/^all$", "the fence was asked 0 times"},
		{"fences too late", "FenceStopsEveryRequestThatEndsSessions/^all$", "but the fence let only 0 pass"},
		{"does not vet", "VettingStopsEveryRequestThatEndsSessions/^all$", "without being vetted"},
		{"vets only the first", "VettingStopsEveryRequestThatEndsSessions/^all$", "without being vetted"},
		{"vets too late", "VettingStopsEveryRequestThatEndsSessions/^all$", "which can end sessions"},
		{"does not vet its preview", "VettingStopsEveryRequestThatEndsSessions/^all$", "the preview's error is <nil>"},
		{"has no limit", "LimitStopsEveryRequest", "want the limit's"},
		{"outlives its context", "CancelledContextSendsNothing", "requests were sent"},
		{"goes on after the end", "CancellationEndsTheCall/^all$", "was sent after the context had ended"},
		{"shows the upstream's body", "FaultInAPreviewEndsNobody", "shows an upstream's body"},
		{"asks in Supports", "EndsExactlyTheMatchedSessions/^all$", "Supports sent 1 requests"},
		{"mixes up runs", "RunsAtOnceEndTheUnion", "complete, but still signed in"},
	} {
		t.Run(string(test.flaw), func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestFlawed$/^"+strings.Replace(test.by, "/", "$/", 1))
			cmd.Env = append(os.Environ(), flawVariable+"="+string(test.flaw))
			out, err := cmd.CombinedOutput()
			switch {
			case err == nil:
				t.Errorf("the suite passes an adapter that %s", test.flaw)
			case !strings.Contains(string(out), test.says):
				t.Errorf("the suite fails an adapter that %s, but does not say %q:\n%.3000s", test.flaw, test.says, out)
			}
		})
	}
}
