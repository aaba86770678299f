// Package manual describes the configuration file: as a JSON Schema for editors, and as a page for people. Both are made
// of the types that the file is decoded into, of the comments in their source, and of the values that they have by
// themselves, so that there is one place to change.
//
// It runs when the documents are generated and needs the source; the program carries what was generated.
package manual
