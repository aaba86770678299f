package emulator

import "slices"

// Lie is one way in which a target does not do what it says. An emulator tells those it can; the conformance suite then
// asks its table of sessions what is true. The text names subtests.
type Lie string

// Honest is the truth.
const Honest Lie = ""

// Lies about what was ended.
const (
	// Keep ends nothing, and says that it ended all it was asked for.
	Keep Lie = "KeepsWhatItSaysItEnded"
	// KeepAndHide is like Keep, and what it says it ended is never listed nor found again.
	KeepAndHide Lie = "KeepsAndHidesWhatItSaysItEnded"
	// Deny ends nothing, and says that there is nothing to end.
	Deny Lie = "DeniesThatThereIsAnything"
	// EndSilently ends all it was asked for, and says that there was nothing.
	EndSilently Lie = "EndsAndDeniesIt"
	// EndSome ends one of those it was asked for, and says that it ended all.
	EndSome Lie = "EndsOneAndSaysAll"
	// EndAnother ends another session than the ones asked for, and says which.
	EndAnother Lie = "EndsAnotherInstead"
	// EndAnotherSilently ends another session, and says that it ended those asked for.
	EndAnotherSilently Lie = "EndsAnotherInsteadAndDoesNotSay"
	// EndMore ends more than it was asked for, and says so.
	EndMore Lie = "EndsMore"
	// EndMoreSilently ends more than it was asked for, and does not say so.
	EndMoreSilently Lie = "EndsMoreAndDoesNotSay"
)

// Lies in lists: of sessions or, where a target lists none, of what it manages.
const (
	// ListNone lists nothing.
	ListNone Lie = "ListsNothing"
	// ListLess leaves the first entry there is out of every list.
	ListLess Lie = "ListsLess"
	// ListLessAtFirst does so until something is ended.
	ListLessAtFirst Lie = "ListsLessAtFirst"
	// ListLessByName does so in the lists that are asked for by name, but not in the list of everything.
	ListLessByName Lie = "ListsLessByName"
	// ListLater is an honest list that shows what was ended until it is asked for once more.
	ListLater Lie = "ListsWhatHasEndedOnceMore"
	// ListTwice lists everything twice.
	ListTwice Lie = "ListsTwice"
	// ListPageTwice lists the first half twice, and the second half not at all.
	ListPageTwice Lie = "ListsAPageTwice"
	// ListAnother lists one entry more than asked for.
	ListAnother Lie = "ListsAnother"
	// ListMisnamed lists one entry under another's name.
	ListMisnamed Lie = "ListsOneUnderAnothersName"
	// ListConfused lists everything twice, the second time as somebody else's.
	ListConfused Lie = "ListsOneAsTwo"
)

// Lies is the catalogue.
func Lies() []Lie {
	return []Lie{
		Keep, KeepAndHide, Deny, EndSilently, EndSome, EndAnother, EndAnotherSilently, EndMore, EndMoreSilently,
		ListNone, ListLess, ListLessAtFirst, ListLessByName, ListLater, ListTwice, ListPageTwice, ListAnother, ListMisnamed, ListConfused,
	}
}

// PageTwice returns a list whose first half stands in the place of its second, too.
func PageTwice[T any](xs []T) []T {
	page := xs[:(len(xs)+1)/2]
	return slices.Concat(page, page)
}
