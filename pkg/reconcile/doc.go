// Package reconcile makes the world agree with a plan: it reads what is there,
// diffs it against what should be, and applies the difference in a safe order.
// It knows nothing of what the objects are.
package reconcile
