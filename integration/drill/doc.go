// Package drill is one switchover under live calls, in the lab, seen through
// other people's tools: SIPp holds the calls, etcdctl moves the target, BIRD's
// log tells the routes, the kernel's own tables the connections, tcpdump the
// wire. The demo tells it as a story; the tests demand it.
package drill
