// Package integration holds the scenarios that medway must pass on a real
// kernel with real routers, real etcd and real SIP, and the check of who
// imports whom. The lab is in integration/lab, the drill in integration/drill.
package integration
