// Package agent is one LVS node: it follows etcd, plans, brings the kernel to
// the plan, and announces. Run shows its whole work; every decision is in
// pkg/plan.
package agent
