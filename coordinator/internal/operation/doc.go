// Package operation has what a person can do to what is stored, but for planned
// switchovers. Each operation is a pure function of what is stored: it says what one
// transaction would write, or why there is nothing to write.
package operation
