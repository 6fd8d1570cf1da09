// Package archtest holds the module to its own structure: which package may
// import which, which may use which library, and that there is neither state
// nor work at package level.
//
// Rules are data, each with its reason, and are in rules.go. A rule about a
// package that is gone fails as well, so that the list does not become a story
// about the past, and a package that no rule places fails until it has a place.
//
// It reads source text. It must not know what any package does.
package archtest
